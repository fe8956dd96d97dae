// Writes grayscale PNG files. A canvas cannot do this here: phones limit a canvas to fewer pixels than their photos have.

const SIGNATURE = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);

/** The end of the IHDR chunk: 8 bits, grayscale, deflate, standard filters, not interlaced. */
const GRAYSCALE = [8, 0, 0, 0, 0];

/** The remainder of each byte in the CRC-32 of PNG. */
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? 0xedb88320 ^ (crc >>> 1) : crc >>> 1;
  return crc;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** Make a PNG chunk: length, type, data and checksum. */
function chunk(type, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let index = 0; index < 4; index++) bytes[4 + index] = type.charCodeAt(index);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
  return bytes;
}

/**
 * Make a grayscale PNG, row by row.
 * @param {number} width
 * @param {number} height
 * @param {(y: number) => Uint8Array} row returns the pixels of a row
 * @returns {Promise<Blob>}
 */
export async function grayPng(width, height, row) {
  const deflate = new CompressionStream("deflate");
  const compressed = new Response(deflate.readable).arrayBuffer();
  const writer = deflate.writable.getWriter();
  for (let y = 0; y < height; y++) {
    // The first byte of a line is its filter; 0: none.
    const line = new Uint8Array(width + 1);
    line.set(row(y), 1);
    await writer.write(line);
  }
  await writer.close();
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set(GRAYSCALE, 8);
  const chunks = [chunk("IHDR", header), chunk("IDAT", new Uint8Array(await compressed)), chunk("IEND", [])];
  return new Blob([SIGNATURE, ...chunks], { type: "image/png" });
}
