// Reads image files and masks: size, base64, and a canvas to draw.
import { Failure, preview } from "./api.js";

/**
 * Open an image file. Width and height are those of the upright image: the browser turns it by its EXIF data, as the
 * gateway does. Where the browser cannot show the format, such as TIFF, the gateway makes an image that it can.
 * @param {Blob} file
 * @param {string} name
 * @throws {Failure} if the gateway cannot read it either
 */
export async function open(file, name) {
  const opened = (await show(file)) ?? (await show(await preview({ image: await toBase64(file) })));
  if (!opened) throw new Failure(`This browser cannot show ${name}. Save it as PNG, JPEG or WebP, and choose it again.`);
  return { file, name, ...opened };
}

/** Return the URL and the size of an image file; null if the browser cannot show it. */
async function show(file) {
  const url = URL.createObjectURL(file);
  try {
    const image = await loadImage(url);
    return { url, width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    URL.revokeObjectURL(url);
    return null;
  }
}

/** Load an image; resolves to an image element that can be drawn. */
export async function loadImage(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

/** Return a file's bytes, unchanged, as a data: URL in base64. */
export function toBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Failure("The file cannot be read any more. Choose it again."));
    reader.readAsDataURL(file);
  });
}

/**
 * Draw a mask from the gateway as a stencil: a canvas that has a color where the mask is white, and is clear elsewhere.
 * @param {string} base64 PNG
 * @param {number} width of the canvas
 * @param {number} height of the canvas
 * @param {number[]} color red, green and blue
 */
export async function toStencil(base64, width, height, [red, green, blue]) {
  const mask = await loadImage(`data:image/png;base64,${base64}`);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(mask, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let offset = 0; offset < pixels.data.length; offset += 4) {
    const alpha = pixels.data[offset];
    pixels.data.set([red, green, blue, alpha], offset);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Return the first image among files that were dropped or pasted. */
export const imageIn = (transfer) => [...transfer.files].find((file) => file.type.startsWith("image/"));
