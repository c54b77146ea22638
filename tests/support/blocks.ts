/** Blocks of weights as GGUF files hold them, random ones, and what they stand for in float64. @module */
import type { Random } from "./random.ts";

/** Types in blocks, by their names in GGUF. */
export type BlockType = "Q8_0" | "Q4_0" | "Q4_1" | "Q4_K" | "Q6_K";

/** Weights and bytes of a block. */
export const BLOCKS: Readonly<Record<BlockType, { readonly weights: number; readonly bytes: number }>> = {
  Q8_0: { weights: 32, bytes: 34 },
  Q4_0: { weights: 32, bytes: 18 },
  Q4_1: { weights: 32, bytes: 20 },
  Q4_K: { weights: 256, bytes: 144 },
  Q6_K: { weights: 256, bytes: 210 },
};

/** The value of an f16. */
export function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** The f16 next to a number of normal size. */
export function toHalf(x: number): number {
  if (x === 0) return 0;
  const exponent = Math.floor(Math.log2(Math.abs(x))), unit = 2 ** (Math.max(exponent, -14) - 10);
  const steps = Math.round(Math.abs(x) / unit);
  return (x < 0 ? 0x8000 : 0) + (exponent < -14 ? steps : (exponent + 14) * 1024 + steps);
}

/** Where a block has its f16 scales. */
const scales: Readonly<Record<BlockType, readonly number[]>> = {
  Q8_0: [0],
  Q4_0: [0],
  Q4_1: [0, 2],
  Q4_K: [0, 2],
  Q6_K: [208],
};

/** Random blocks of `count` weights: any bits in the weights, scales about `deviation`. */
export function randomBlocks(random: Random, type: BlockType, count: number, deviation: number = 0.01): Uint8Array {
  const { weights, bytes } = BLOCKS[type],
    blocks = Uint8Array.from({ length: count / weights * bytes }, () => random.integer(0, 255));
  const view = new DataView(blocks.buffer);
  for (let at = 0; at < blocks.length; at += bytes) {
    for (const offset of scales[type]) view.setUint16(at + offset, toHalf(deviation * random.normals(1)[0]), true);
  }
  return blocks;
}

/** The weights of blocks, after the formulas of the format's description. */
export function blockWeights(type: BlockType, blocks: Uint8Array): number[] {
  const { bytes } = BLOCKS[type], out: number[] = [];
  for (let at = 0; at < blocks.length; at += bytes) out.push(...weightsOf(type, blocks.subarray(at, at + bytes)));
  return out;
}

function weightsOf(type: BlockType, block: Uint8Array): number[] {
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const f16 = (offset: number): number => half(view.getUint16(offset, true));
  const list = (length: number, of: (i: number) => number): number[] => Array.from({ length }, (_, i) => of(i));
  const nibble = (offset: number, i: number): number => i < 16 ? block[offset + i] % 16 : block[offset + i - 16] >> 4;
  switch (type) {
    case "Q8_0":
      return list(32, (i) => f16(0) * view.getInt8(2 + i));
    case "Q4_0":
      return list(32, (i) => f16(0) * (nibble(2, i) - 8));
    case "Q4_1":
      return list(32, (i) => f16(0) * nibble(4, i) + f16(2));
    case "Q4_K":
      // Eight groups of 32 with 6-bit scale and minimum in 12 bytes; groups 2 j and 2 j + 1 share 32 bytes of halves.
      return list(256, (i) => {
        const group = i >> 5, packed = (j: number): number => block[4 + j];
        const scale = group < 4 ? packed(group) & 63 : packed(group + 4) & 15 | packed(group - 4) >> 6 << 4;
        const least = group < 4 ? packed(group + 4) & 63 : packed(group + 4) >> 4 | packed(group) >> 6 << 4;
        const byte = block[16 + (group >> 1) * 32 + i % 32], q = group % 2 ? byte >> 4 : byte & 15;
        return f16(0) * scale * q - f16(2) * least;
      });
    case "Q6_K":
      // Sixteen groups of 16 with an 8-bit scale. In each half of 128, weight i has four low bits in ql and two high in qh.
      return list(256, (i) => {
        const side = i >> 7, j = i & 127, quarter = j >> 5, l = j & 31;
        const low = block[side * 64 + (quarter & 1) * 32 + l] >> (quarter & 2 ? 4 : 0) & 15;
        const high = block[128 + side * 32 + l] >> 2 * quarter & 3;
        return f16(208) * view.getInt8(192 + (i >> 4)) * ((low | high << 4) - 32);
      });
  }
}
