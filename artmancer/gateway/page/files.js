// Picture files in and out.
import { Failure } from "./api.js";

/**
 * A picture file that the browser can show. Its size is that of the upright picture: the browser, like the gateway,
 * turns it as its EXIF data say.
 * @param {Blob} file
 * @param {string} name
 */
export async function open(file, name) {
  const url = URL.createObjectURL(file);
  try {
    const image = await decoded(url);
    return { file, name, url, width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    URL.revokeObjectURL(url);
    throw new Failure(`${name} cannot be shown here. Save it as PNG, JPEG or WebP, and choose it again.`);
  }
}

/** An image element that can be drawn. */
export async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

/** A file's bytes as they are, base64 behind a data: prefix. */
export function toBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Failure("The file cannot be read any more. Choose it again."));
    reader.readAsDataURL(file);
  });
}

/** A mask that the gateway sent, white = marked, as a canvas of this size: `color` where it is marked, else clear. */
export async function toStencil(base64, width, height, [red, green, blue]) {
  const mask = await decoded(`data:image/png;base64,${base64}`);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(mask, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    const marked = pixels.data[at];
    pixels.data.set([red, green, blue, marked], at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** The picture among the files that were dropped or pasted. */
export const pictureIn = (transfer) => [...transfer.files].find((file) => file.type.startsWith("image/"));
