import { assert } from "@std/assert";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { modelFingerprint } from "../../lib/calibration/mod.ts";
import { transformMatrices } from "../../lib/cache/matrix.ts";
import { EMBEDDED_MODEL } from "../../mod.ts";
import { Safetensors } from "../../lib/weights/safetensors.ts";
import {
  attention,
  Device,
  kvConfig,
  KvLayer,
  layerFormat,
  PRESETS,
  Quantizer,
  readCalibration,
  Tensor,
  Transform,
} from "../../lib/ops/mod.ts";

// Post-RoPE queries and keys, and values, of 512 held-out tokens of the embedded model: f16 (heads, tokens, 64).
const file = fileURLToPath(new URL("./kv.safetensors", import.meta.url)),
  folder = fileURLToPath(EMBEDDED_MODEL);
const TOKENS = 512, HEADS = 8, KV_HEADS = 2, D = 64;

/** (heads, tokens, D) in f16 to [tokens, heads, D] in f32. */
function rowsOf(name: string, heads: number): Float32Array {
  using kv = Safetensors.open(file);
  const from = Float32Array.from(new Float16Array(kv.read(name).slice().buffer)), out = new Float32Array(from.length);
  for (let h = 0; h < heads; h++) {
    for (let t = 0; t < TOKENS; t++) {
      out.set(from.subarray((h * TOKENS + t) * D, (h * TOKENS + t + 1) * D), (t * heads + h) * D);
    }
  }
  return out;
}

/** softmax(q K^T / 8) V in float64 for the last token. */
function reference(q: Float32Array, keys: Float32Array, values: Float32Array): Float64Array {
  const out = new Float64Array(HEADS * D);
  for (let h = 0; h < HEADS; h++) {
    const kv = Math.floor(h / (HEADS / KV_HEADS)), scores = new Float64Array(TOKENS);
    for (let t = 0; t < TOKENS; t++) {
      for (let d = 0; d < D; d++) scores[t] += q[h * D + d] * keys[(t * KV_HEADS + kv) * D + d] / 8;
    }
    const largest = Math.max(...scores), weights = scores.map((s) => Math.exp(s - largest));
    const sum = weights.reduce((a, b) => a + b);
    for (let t = 0; t < TOKENS; t++) {
      for (let d = 0; d < D; d++) out[h * D + d] += weights[t] / sum * values[(t * KV_HEADS + kv) * D + d];
    }
  }
  return out;
}

/** The relative error of attention over a layer's codes against that over its dequantized rows, for the last token. */
function errorOf(device: Device, layer: number, keys: Quantizer, values: Quantizer): number {
  using owned = new DisposableStack();
  const pages = TOKENS / 64;
  const cache = owned.use(
    new KvLayer(device, {
      keys,
      values,
      keyPages: owned.use(Tensor.empty(device, "u8", [pages, keys.pageBytes])),
      valuePages: owned.use(Tensor.empty(device, "u8", [pages, values.pageBytes])),
      pageTable: owned.use(
        Tensor.from(device, Int32Array.from({ length: pages }, (_, i) => pages - 1 - i), [1, pages]),
      ),
      exactFrom: owned.use(Tensor.zeros(device, "i32", [1])),
      sinks: 0,
      window: 0,
      recent: 0,
    }),
  );
  const tensor = (array: Float32Array | Int32Array, width: number) =>
    owned.use(Tensor.from(device, array, [array.length / width, width]));
  const slots = tensor(new Int32Array(TOKENS), 1),
    positions = tensor(Int32Array.from({ length: TOKENS }, (_, i) => i), 1);
  const width = KV_HEADS * D, queries = rowsOf(`layers.${layer}.q`, HEADS).subarray(-HEADS * D);
  cache.quantize(
    tensor(rowsOf(`layers.${layer}.k`, KV_HEADS), width),
    tensor(rowsOf(`layers.${layer}.v`, KV_HEADS), width),
    slots,
    positions,
  );
  const [k, v] = [tensor(new Float32Array(TOKENS * width), width), tensor(new Float32Array(TOKENS * width), width)];
  cache.dequantize(k, v, 0, 0);
  const out = tensor(new Float32Array(HEADS * D), HEADS * D);
  attention(out, tensor(queries, HEADS * D), cache, slots.rows(0, 1), positions.rows(TOKENS - 1, 1));
  const expected = reference(queries, k.read<Float32Array>(), v.read<Float32Array>()), found = out.read<Float32Array>();
  let error = 0, size = 0;
  expected.forEach((x, i) => {
    error += (x - found[i]) ** 2;
    size += x * x;
  });
  return Math.sqrt(error / size);
}

for (const preset of Object.keys(PRESETS)) {
  test(`${preset}: attention over the codes of real keys and values is that over the dequantized ones, within 1e-5`, () => {
    using device = Device.open({ device: "cpu" });
    using owned = new DisposableStack();
    const config = kvConfig(preset), shape = { layers: 8, kvHeads: KV_HEADS, headDim: D };
    for (const layer of [0, 3, 7]) {
      const [keys, values] = (["keys", "values"] as const).map((which) => {
        const format = config[which];
        const side = format.bits === 16 ? undefined : readCalibration(
          `${folder}/calibration/${preset}.vecinfer.safetensors`,
          modelFingerprint(folder),
          shape,
          { [which]: format },
        )[which]!;
        const { codebook, smooth, matrix } = side?.layers[layer] ?? {};
        const { subDim, bits } = side ? layerFormat(side, format, layer) : format;
        return owned.use(
          new Quantizer(device, {
            kvHeads: KV_HEADS,
            headDim: D,
            subDim,
            bits,
            codebooks: codebook && owned.use(Tensor.from(device, codebook, [codebook.length / subDim, subDim])),
            codebookHeads: codebook && codebook.length / subDim / 2 ** bits,
            transform: side && owned.use(
              new Transform(device, {
                kvHeads: KV_HEADS,
                headDim: D,
                smooth: smooth && owned.use(Tensor.from(device, smooth, [KV_HEADS, D])),
                matrices: matrix && owned.use(Tensor.from(device, transformMatrices(matrix, D), [3, KV_HEADS, D * D])),
                hadamard: side.transform.endsWith("hadamard"),
              }),
            ),
            tokenScale: side?.tokenScale ?? false,
          }),
        );
      });
      const error = errorOf(device, layer, keys, values);
      assert(error <= 1e-5, `layer ${layer}: relative error ${error}`);
    }
  });
}

/** A codebook for each head and sub-vector: sub-vectors of evenly spread tokens. */
function partCodebooks(rows: Float32Array, subDim: number, words: number): Float32Array {
  const parts = D / subDim, out = new Float32Array(KV_HEADS * parts * words * subDim);
  for (let book = 0; book < KV_HEADS * parts; book++) {
    for (let word = 0; word < words; word++) {
      const token = Math.floor(word * TOKENS / words), at = token * KV_HEADS * D + book * subDim;
      // More codewords than tokens: further ones are moved away from the tokens.
      const factor = 1 + word % Math.max(1, words / TOKENS) / 8;
      for (let i = 0; i < subDim; i++) out[(book * words + word) * subDim + i] = factor * rows[at + i];
    }
  }
  return out;
}

for (const preset of Object.keys(PRESETS).filter((name) => name !== "bf16")) {
  test(`${preset} with a codebook a head and sub-vector: attention over the codes is that over the dequantized ones, within 1e-5`, () => {
    using device = Device.open({ device: "cpu" });
    using owned = new DisposableStack();
    const config = kvConfig(preset);
    for (const layer of [0, 3, 7]) {
      const [keys, values] = (["keys", "values"] as const).map((which) => {
        const { subDim, bits } = config[which], rows = rowsOf(`layers.${layer}.${which[0]}`, KV_HEADS);
        const codebooks = partCodebooks(rows, subDim, 2 ** bits);
        return owned.use(
          new Quantizer(device, {
            kvHeads: KV_HEADS,
            headDim: D,
            subDim,
            bits,
            codebooks: owned.use(Tensor.from(device, codebooks, [codebooks.length / subDim, subDim])),
            codebookHeads: KV_HEADS,
            codebookParts: D / subDim,
          }),
        );
      });
      const error = errorOf(device, layer, keys, values);
      assert(error <= 1e-5, `layer ${layer}: relative error ${error}`);
    }
  });
}
