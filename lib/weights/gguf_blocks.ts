/**
 * What the blocks of GGUF stand for.
 *
 * @module
 */

import { WeightsError } from "./json.ts";

/** Types in blocks that {@linkcode dequantizeBlocks} knows. */
export const BLOCK_TYPES: readonly string[] = ["Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"];

/** The f32 of every f16, made when first needed. */
let halves: Float32Array | undefined;

function halfTable(): Float32Array {
  if (halves) return halves;
  halves = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
    halves[bits] = exponent === 31
      ? fraction ? NaN : sign * Infinity
      : exponent === 0
      ? sign * fraction * 2 ** -24
      : sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return halves;
}

/**
 * The weights of whole blocks, or of plain F32, F16 and BF16, in f32. `out` has as many elements as these. The layouts are those of
 * https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Throws WeightsError for a type it does not know.
 */
export function dequantizeBlocks(type: string, blocks: Uint8Array, out: Float32Array): void {
  const half = halfTable();
  const f16 = (at: number): number => half[blocks[at] | blocks[at + 1] << 8];
  switch (type) {
    case "F32":
      new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(blocks);
      break;
    case "F16":
      for (let i = 0; i < out.length; i++) out[i] = f16(2 * i);
      break;
    case "BF16": {
      const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
      for (let i = 0; i < out.length; i++) bits[i] = (blocks[2 * i] | blocks[2 * i + 1] << 8) << 16;
      break;
    }
    case "Q8_0":
      for (let at = 0, to = 0; at < blocks.length; at += 34, to += 32) {
        const d = f16(at);
        for (let i = 0; i < 32; i++) out[to + i] = d * (blocks[at + 2 + i] << 24 >> 24);
      }
      break;
    case "Q4_0":
      for (let at = 0, to = 0; at < blocks.length; at += 18, to += 32) {
        const d = f16(at);
        for (let i = 0; i < 16; i++) {
          const q = blocks[at + 2 + i];
          out[to + i] = d * ((q & 15) - 8);
          out[to + 16 + i] = d * ((q >> 4) - 8);
        }
      }
      break;
    case "Q4_1":
      for (let at = 0, to = 0; at < blocks.length; at += 20, to += 32) {
        const d = f16(at), m = f16(at + 2);
        for (let i = 0; i < 16; i++) {
          const q = blocks[at + 4 + i];
          out[to + i] = d * (q & 15) + m;
          out[to + 16 + i] = d * (q >> 4) + m;
        }
      }
      break;
    case "Q4_K":
      // { f16 d, dmin; u8 scales[12]; u8 q[128] }: eight groups of 32, w = d scale q - dmin least, scale and least of 6 bits.
      for (let at = 0, to = 0; at < blocks.length; at += 144, to += 256) {
        const d = f16(at), dmin = f16(at + 2), s = at + 4;
        for (let group = 0; group < 8; group++) {
          const early = group < 4;
          const scale = early ? blocks[s + group] & 63 : blocks[s + group + 4] & 15 | (blocks[s + group - 4] >> 6) << 4;
          const least = early ? blocks[s + group + 4] & 63 : blocks[s + group + 4] >> 4 | (blocks[s + group] >> 6) << 4;
          const a = d * scale, b = dmin * least, q = at + 16 + (group >> 1) * 32, shift = group & 1 ? 4 : 0;
          for (let i = 0; i < 32; i++) out[to + group * 32 + i] = a * (blocks[q + i] >> shift & 15) - b;
        }
      }
      break;
    case "Q6_K":
      // { u8 ql[128], qh[64]; i8 scales[16]; f16 d }: w = d scale (q - 32), q of 4 bits in ql and 2 in qh.
      for (let at = 0, to = 0; at < blocks.length; at += 210, to += 256) {
        const d = f16(at + 208);
        for (let part = 0; part < 8; part++) {
          const side = part >> 2, quarter = part & 3;
          const ql = at + side * 64 + (quarter & 1) * 32, qh = at + 128 + side * 32, shift = quarter & 2 ? 4 : 0;
          for (let i = 0; i < 32; i++) {
            const scale = blocks[at + 192 + part * 2 + (i >> 4)] << 24 >> 24;
            const q = blocks[ql + i] >> shift & 15 | (blocks[qh + i] >> 2 * quarter & 3) << 4;
            out[to + part * 32 + i] = d * scale * (q - 32);
          }
        }
      }
      break;
    default:
      throw new WeightsError(`blocks of ${type} are not supported; supported: ${BLOCK_TYPES.join(", ")}`);
  }
}
