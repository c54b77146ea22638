/**
 * The configuration of a model from the metadata of its GGUF file.
 *
 * @module
 */

import { reasonAgainst } from "./architectures.ts";
import type { Gguf } from "./gguf.ts";
import { ggufArchitectures, otherNames } from "./gguf_architectures.ts";
import { GgufFields } from "./gguf_fields.ts";
import { WeightsError } from "./json.ts";
import { checkShape, type ModelConfig, type RopeScaling } from "./model_config.ts";

/** The sizes and constants of a model. Throws WeightsError for an architecture that the runtime does not have, by its name. */
export function ggufConfig(file: Gguf): ModelConfig {
  const fields = new GgufFields(file), at = architectureOf(file, fields), entry = ggufArchitectures[at];
  const layers = fields.needed(`${at}.block_count`), experts = fields.count(`${at}.expert_count`, 0) ?? 0;
  const { heads, kvHeads, headDim, hiddenSize } = readHeads(file, fields, at);
  const contextLength = fields.needed(`${at}.context_length`);
  const windows = readWindows(file, fields, at, layers, contextLength);
  const rmsNormEps = fields.positive(`${at}.attention.layer_norm_rms_epsilon`);
  if (rmsNormEps === undefined) throw fields.wrong(`${at}.attention.layer_norm_rms_epsilon`, "a number > 0");
  const rotaryDim = readRotaryDim(fields, at, headDim), own = entry.own(file, fields, at, layers);
  const { shape } = file.info("token_embd.weight");
  const ids = ["eos", "eot", "eom"].map((name) => fields.id(`tokenizer.ggml.${name}_token_id`));
  return {
    architecture: entry.name(experts),
    vocabularySize: shape[0],
    hiddenSize,
    intermediateSize: fields.needed(`${at}.feed_forward_length`),
    layers,
    heads,
    kvHeads,
    headDim,
    contextLength,
    rmsNormEps,
    ropeTheta: fields.positive(`${at}.rope.freq_base`) ?? 10000,
    ropeScaling: readScaling(file, fields, at, rotaryDim, contextLength),
    ...(rotaryDim !== headDim && { rotaryDim }),
    tieWordEmbeddings: !file.has("output.weight"),
    ...own,
    ...(windows && { windows }),
    bosId: fields.id("tokenizer.ggml.bos_token_id") ?? null,
    eosIds: [...new Set(ids.filter((id) => id !== undefined))],
  };
}

/** `general.architecture`. */
function architectureOf(file: Gguf, fields: GgufFields): string {
  const name = fields.text("general.architecture") ?? "(none)";
  if (Object.hasOwn(ggufArchitectures, name)) return name;
  const reason = Object.hasOwn(otherNames, name) ? ` (${reasonAgainst(otherNames[name])})` : "";
  const supported = Object.keys(ggufArchitectures).join(", ");
  throw new WeightsError(
    `${file.path}: general.architecture: the architecture ${name} is not supported${reason}; supported: ${supported}`,
  );
}

function readHeads(
  file: Gguf,
  fields: GgufFields,
  at: string,
): Pick<ModelConfig, "heads" | "kvHeads" | "headDim" | "hiddenSize"> {
  const hiddenSize = fields.needed(`${at}.embedding_length`), heads = fields.needed(`${at}.attention.head_count`);
  const keys = { kvHeads: `${at}.attention.head_count_kv`, headDim: `${at}.attention.key_length: head_dim` };
  const kvHeads = fields.count(keys.kvHeads) ?? heads;
  const headDim = fields.count(`${at}.attention.key_length`) ?? hiddenSize / heads;
  const valueDim = fields.count(`${at}.attention.value_length`) ?? headDim;
  if (valueDim !== headDim) throw fields.wrong(`${at}.attention.value_length`, String(headDim));
  checkShape(file.path, keys, heads, kvHeads, headDim);
  return { hiddenSize, heads, kvHeads, headDim };
}

/** The sliding window of each layer, 0 for none; undefined where no layer has one. */
function readWindows(
  file: Gguf,
  fields: GgufFields,
  at: string,
  layers: number,
  contextLength: number,
): number[] | undefined {
  const { window } = ggufArchitectures[at], key = `${at}.attention.sliding_window`, pattern = `${key}_pattern`;
  const size = fields.count(key, 0) ?? window?.size ?? 0;
  if (window === undefined) {
    if (size === 0 || size >= contextLength) return undefined;
    throw fields.wrong(
      key,
      `0 or at least ${contextLength} (${at}.context_length), as ${at} files have no layers with a window`,
    );
  }
  if (size === 0 || (size >= contextLength && !window.rope)) return undefined;
  const listed = Array.isArray(file.metadata.get(pattern)) ? fields.flags(pattern) : undefined;
  if (listed && listed.length !== layers) throw fields.wrong(pattern, `true or false for each of ${layers} layers`);
  const period = listed ? 0 : fields.count(pattern, 0) ?? window.period;
  const windows = Array.from({ length: layers }, (_, layer) => {
    const has = listed ? listed[layer] : period === 0 || (layer + 1) % period !== 0;
    return has ? size : 0;
  });
  return windows.some((each) => each > 0) ? windows : undefined;
}

/** The rotated channels of a head: only where halves or pairs stand together in the file may they be a part. */
function readRotaryDim(fields: GgufFields, at: string, headDim: number): number {
  const key = `${at}.rope.dimension_count`, rotated = fields.count(key) ?? headDim;
  if (ggufArchitectures[at].interleaved && rotated !== headDim) throw fields.wrong(key, `${headDim}, a whole head`);
  if (rotated > headDim || rotated % 2 !== 0) throw fields.wrong(key, `an even number up to ${headDim}`);
  return rotated;
}

function readScaling(
  file: Gguf,
  fields: GgufFields,
  at: string,
  rotaryDim: number,
  contextLength: number,
): RopeScaling | null {
  const key = `${at}.rope.scaling.type`, type = fields.text(key) ?? "none";
  const originalContextLength = fields.count(`${at}.rope.scaling.original_context_length`) ?? contextLength;
  const attention = fields.factor(`${at}.rope.scaling.attn_factor`) ?? 1;
  if (file.has("rope_factors_long.weight")) {
    const [shortFactors, longFactors] = ["short", "long"].map((name) =>
      readFactors(file, `rope_factors_${name}.weight`, rotaryDim / 2)
    );
    return { type: "longrope", shortFactors, longFactors, originalContextLength, attentionFactor: attention };
  }
  const factor = fields.factor(`${at}.rope.scaling.factor`) ?? fields.factor(`${at}.rope.scale_linear`) ?? 1;
  if (type === "yarn") {
    return {
      type: "yarn",
      factor,
      originalContextLength,
      betaFast: fields.positive(`${at}.rope.scaling.yarn_beta_fast`) ?? 32,
      betaSlow: fields.positive(`${at}.rope.scaling.yarn_beta_slow`) ?? 1,
      truncate: ggufArchitectures[at].exactYarn !== true,
      attentionFactor: attention * (factor <= 1 ? 1 : 0.1 * Math.log(factor) + 1),
    };
  }
  if (type !== "none" && type !== "linear") {
    throw new WeightsError(
      `${file.path}: ${key}: rope scaling "${type}" is not supported; supported: none, linear, yarn, rope_freqs, rope_factors`,
    );
  }
  // Llama 3.1's scaling comes as a divisor for each frequency, in a tensor.
  if (!file.has("rope_freqs.weight")) return factor === 1 ? null : { type: "linear", factor };
  const factors = readFactors(file, "rope_freqs.weight", rotaryDim / 2);
  return { type: "factors", factors: factors.map((divisor) => divisor * factor) };
}

/** `count` divisors of frequencies. */
function readFactors(file: Gguf, name: string, count: number): number[] {
  const { dtype, shape, byteLength } = file.info(name);
  if (dtype !== "F32" || shape.length !== 1 || shape[0] !== count) {
    throw new WeightsError(`${file.path}: ${name} is ${dtype} [${shape.join(", ")}], expected F32 [${count}]`);
  }
  const bytes = new Uint8Array(byteLength), view = new DataView(bytes.buffer);
  file.readInto(name, 0, bytes);
  const factors = Array.from({ length: count }, (_, i) => view.getFloat32(4 * i, true));
  if (!factors.every((divisor) => divisor > 0 && divisor < Infinity)) {
    throw new WeightsError(`${file.path}: ${name} has a value that is not a number > 0`);
  }
  return factors;
}
