// A writer of grey PNG files. A canvas would not do: phones refuse one as large as the photos they take.

const SIGNATURE = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
const GREY = [8, 0, 0, 0, 0]; // 8 bits, grey, deflate, the usual filters, not interlaced

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

function chunk(type, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let at = 0; at < 4; at++) bytes[4 + at] = type.charCodeAt(at);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
  return bytes;
}

/**
 * @param {number} width
 * @param {number} height
 * @param {(y: number) => Uint8Array} row the pixels of a row
 * @returns {Promise<Blob>}
 */
export async function greyPng(width, height, row) {
  const deflate = new CompressionStream("deflate");
  const packed = new Response(deflate.readable).arrayBuffer();
  const writer = deflate.writable.getWriter();
  for (let y = 0; y < height; y++) {
    const line = new Uint8Array(width + 1); // its first byte names the row's filter: none
    line.set(row(y), 1);
    await writer.write(line);
  }
  await writer.close();
  const header = new Uint8Array(13);
  new DataView(header.buffer).setUint32(0, width);
  new DataView(header.buffer).setUint32(4, height);
  header.set(GREY, 8);
  const chunks = [chunk("IHDR", header), chunk("IDAT", new Uint8Array(await packed)), chunk("IEND", [])];
  return new Blob([SIGNATURE, ...chunks], { type: "image/png" });
}
