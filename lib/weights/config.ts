/**
 * `config.json` of a model, checked and typed. A field of the wrong type, an architecture or a shape that the runtime
 * does not have, is refused by name; nothing is guessed.
 *
 * @module
 */

import { existsSync, type Stats, statSync } from "node:fs";
import { join } from "node:path";
import { Gguf } from "./gguf.ts";
import { ggufConfig } from "./gguf_llama.ts";
import { fileErrorCause, isObject, type JsonObject, readObject, WeightsError } from "./json.ts";

/** How rotary frequencies are stretched for contexts longer than those of pre-training. */
export type RopeScaling =
  | {
    /** All frequencies divided by `factor`. */
    readonly type: "linear";
    /** Divisor, >= 1. */
    readonly factor: number;
  }
  | {
    /** Llama 3.1: low frequencies divided by `factor`, high ones kept, those between interpolated. */
    readonly type: "llama3";
    /** Divisor of the low frequencies. */
    readonly factor: number;
    /** Wavelengths above `originalContextLength / lowFrequencyFactor` are low frequencies. */
    readonly lowFrequencyFactor: number;
    /** Wavelengths below `originalContextLength / highFrequencyFactor` are high frequencies. */
    readonly highFrequencyFactor: number;
    /** Context of pre-training, tokens. */
    readonly originalContextLength: number;
  }
  | {
    /** Each frequency divided by a factor of its own, as GGUF files have it. */
    readonly type: "factors";
    /** Divisors, headDim / 2 of them. */
    readonly factors: readonly number[];
  };

/** A Llama-architecture model's sizes and constants. */
export interface ModelConfig {
  /** The architecture's name in Hugging Face transformers. */
  readonly architecture: "LlamaForCausalLM";
  /** Rows of the embedding and of the output projection. */
  readonly vocabularySize: number;
  /** Channels of the residual stream. */
  readonly hiddenSize: number;
  /** Channels of the feed-forward layer. */
  readonly intermediateSize: number;
  /** Decoder layers. */
  readonly layers: number;
  /** Query heads. */
  readonly heads: number;
  /** Key/value heads; divides `heads`. */
  readonly kvHeads: number;
  /** Channels of a head, 64 or 128. */
  readonly headDim: number;
  /** The longest context, tokens (`max_position_embeddings`). */
  readonly contextLength: number;
  /** Epsilon of RMSNorm. */
  readonly rmsNormEps: number;
  /** Base of the rotary frequencies. */
  readonly ropeTheta: number;
  /** Scaling of the rotary frequencies, or null. */
  readonly ropeScaling: RopeScaling | null;
  /** Whether the output projection is the embedding. */
  readonly tieWordEmbeddings: boolean;
  /** Whether the query, key, value and output projections have a bias. */
  readonly attentionBias: boolean;
  /** Whether the feed-forward projections have a bias. */
  readonly mlpBias: boolean;
  /** Id of the token that begins a text, or null. */
  readonly bosId: number | null;
  /** Ids of the tokens that end a generation, from config.json and generation_config.json. */
  readonly eosIds: readonly number[];
}

/** Architectures the runtime has. */
export const SUPPORTED_ARCHITECTURES: readonly string[] = ["LlamaForCausalLM"];

/** Head dimensions the native libraries have. */
export const SUPPORTED_HEAD_DIMS: readonly number[] = [64, 128];

/** The most query heads that share a key/value head. */
const MAX_GROUP = 16;

/** Whether a model is one GGUF file rather than a folder, which its name tells. */
export function isGguf(path: string): boolean {
  return /\.gguf$/i.test(path);
}

/** Throws {@link WeightsError} where a path is neither a model folder nor a GGUF file: what is there, and what to give. */
export function checkModelPath(path: string): void {
  const refuse = (what: string): never => {
    const give = "give a model folder in Hugging Face layout (scripts/pull.ts downloads one) or a .gguf file";
    throw new WeightsError(`${what}; ${give}`);
  };
  let stat: Stats;
  try {
    stat = statSync(path);
  } catch (error) {
    return refuse(`${path}: ${fileErrorCause(error)}`);
  }
  if (isGguf(path)) return stat.isDirectory() ? refuse(`${path}: is a folder, not a file`) : undefined;
  if (!stat.isDirectory()) refuse(`${path}: is a file whose name does not end in .gguf`);
  const config = join(path, "config.json");
  if (!existsSync(config)) refuse(`${config}: no such file`);
}

/**
 * Reads `config.json` (and `generation_config.json`, where there is one) of a model's folder, or the metadata of a GGUF file.
 * Throws {@link WeightsError} that names the file, the field, what was expected and what was found.
 */
export function readModelConfig(folder: string): ModelConfig {
  checkModelPath(folder);
  if (isGguf(folder)) {
    using file = Gguf.open(folder);
    return ggufConfig(file);
  }
  const path = join(folder, "config.json");
  const config = new Fields(path, readObject(path));
  checkArchitecture(config);

  const hiddenSize = config.count("hidden_size");
  const heads = config.count("num_attention_heads");
  const kvHeads = config.optionalCount("num_key_value_heads") ?? heads;
  const headDim = config.optionalCount("head_dim") ?? hiddenSize / heads;
  checkedShape(path, heads, kvHeads, headDim);
  const rope = readRope(config);
  return {
    architecture: "LlamaForCausalLM",
    vocabularySize: config.count("vocab_size"),
    hiddenSize,
    intermediateSize: config.count("intermediate_size"),
    layers: config.count("num_hidden_layers"),
    heads,
    kvHeads,
    headDim,
    contextLength: config.count("max_position_embeddings"),
    rmsNormEps: config.positive("rms_norm_eps"),
    ropeTheta: rope.theta,
    ropeScaling: rope.scaling,
    tieWordEmbeddings: config.flag("tie_word_embeddings"),
    attentionBias: config.flag("attention_bias"),
    mlpBias: config.flag("mlp_bias"),
    bosId: config.ids("bos_token_id")[0] ?? null,
    eosIds: readEosIds(folder, config),
  };
}

/** Throws {@link WeightsError} where the native libraries do not have the heads of a model. */
export function checkedShape(path: string, heads: number, kvHeads: number, headDim: number): void {
  if (heads % kvHeads !== 0 || heads / kvHeads > MAX_GROUP) {
    throw new WeightsError(
      `${path}: ${heads} query heads over ${kvHeads} key/value heads; from 1 to ${MAX_GROUP} query heads must share each`,
    );
  }
  if (!SUPPORTED_HEAD_DIMS.includes(headDim)) {
    throw new WeightsError(
      `${path}: head_dim ${headDim} is not supported; supported: ${SUPPORTED_HEAD_DIMS.join(", ")}`,
    );
  }
}

function checkArchitecture(config: Fields): void {
  const { path } = config;
  const architectures = config.value("architectures");
  if (!Array.isArray(architectures) || typeof architectures[0] !== "string") {
    throw config.wrong("architectures", "a list with one name");
  }
  const supported = `supported: ${SUPPORTED_ARCHITECTURES.join(", ")}`;
  if (!SUPPORTED_ARCHITECTURES.includes(architectures[0])) {
    throw new WeightsError(`${path}: the architecture ${architectures[0]} is not supported; ${supported}`);
  }
  const modelType = config.value("model_type");
  if (modelType !== undefined && modelType !== "llama") throw config.wrong("model_type", '"llama"');
  const activation = config.value("hidden_act");
  if (activation !== undefined && activation !== "silu") throw config.wrong("hidden_act", '"silu"');
  if (isObject(config.value("quantization_config"))) {
    const method = (config.value("quantization_config") as JsonObject).quant_method;
    throw new WeightsError(
      `${path}: the weights are quantized (${String(method ?? "unnamed method")}), which is not supported; ` +
        "take the model's bf16, f16 or f32 version",
    );
  }
}

/** transformers 4 has rope_theta and rope_scaling; transformers 5 has both in rope_parameters. */
function readRope(config: Fields): { theta: number; scaling: RopeScaling | null } {
  const nested = config.object("rope_parameters");
  const theta = nested?.optionalPositive("rope_theta") ?? config.optionalPositive("rope_theta") ?? 10000;
  const scaling = config.object("rope_scaling") ?? nested;
  for (const fields of [config, nested]) {
    const part = fields?.optionalPositive("partial_rotary_factor");
    if (part !== undefined && part !== 1) throw fields!.wrong("partial_rotary_factor", "1");
  }
  if (!scaling) return { theta, scaling: null };
  const type = scaling.value("rope_type") ?? scaling.value("type") ?? "default";
  switch (type) {
    case "default":
      return { theta, scaling: null };
    case "linear":
      return { theta, scaling: { type: "linear", factor: scaling.positive("factor") } };
    case "llama3":
      return {
        theta,
        scaling: {
          type: "llama3",
          factor: scaling.positive("factor"),
          lowFrequencyFactor: scaling.positive("low_freq_factor"),
          highFrequencyFactor: scaling.positive("high_freq_factor"),
          originalContextLength: scaling.count("original_max_position_embeddings"),
        },
      };
    default:
      throw new WeightsError(
        `${config.path}: rope scaling ${JSON.stringify(type)} is not supported; supported: default, linear, llama3`,
      );
  }
}

/** A model's generation_config.json may list more ends than its config.json (Llama 3: end of text, of message, of turn). */
function readEosIds(folder: string, config: Fields): number[] {
  const path = join(folder, "generation_config.json");
  const more = existsSync(path) ? new Fields(path, readObject(path)).ids("eos_token_id") : [];
  return [...new Set([...config.ids("eos_token_id"), ...more])];
}

/** Typed access to the fields of one JSON object of a file. */
class Fields {
  readonly path: string;
  readonly #object: JsonObject;
  readonly #prefix: string;

  constructor(path: string, object: JsonObject, prefix: string = "") {
    this.path = path;
    this.#object = object;
    this.#prefix = prefix;
  }

  /** The value; null counts as absent. */
  value(name: string): unknown {
    return Object.hasOwn(this.#object, name) ? this.#object[name] ?? undefined : undefined;
  }

  wrong(name: string, expected: string): WeightsError {
    const value = this.value(name);
    const found = value === undefined ? "nothing" : JSON.stringify(value).slice(0, 80);
    return new WeightsError(`${this.path}: ${this.#prefix}${name}: expected ${expected}, found ${found}`);
  }

  optionalCount(name: string): number | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    if (!Number.isInteger(value) || (value as number) < 1 || (value as number) >= 2 ** 31) {
      throw this.wrong(name, "a whole number >= 1");
    }
    return value as number;
  }

  count(name: string): number {
    const value = this.optionalCount(name);
    if (value === undefined) throw this.wrong(name, "a whole number >= 1");
    return value;
  }

  optionalPositive(name: string): number | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    if (typeof value !== "number" || !(value > 0) || value === Infinity) throw this.wrong(name, "a number > 0");
    return value;
  }

  positive(name: string): number {
    const value = this.optionalPositive(name);
    if (value === undefined) throw this.wrong(name, "a number > 0");
    return value;
  }

  /** Absent means false, as in transformers. */
  flag(name: string): boolean {
    const value = this.value(name);
    if (value !== undefined && typeof value !== "boolean") throw this.wrong(name, "true or false");
    return value ?? false;
  }

  /** An id or a list of ids; absent means none. */
  ids(name: string): number[] {
    const value = this.value(name);
    if (value === undefined) return [];
    const ids: unknown[] = Array.isArray(value) ? value : [value];
    if (!ids.every((id) => Number.isInteger(id) && (id as number) >= 0)) {
      throw this.wrong(name, "a token id or a list of token ids");
    }
    return ids as number[];
  }

  object(name: string): Fields | undefined {
    const value = this.value(name);
    if (value === undefined) return undefined;
    if (!isObject(value)) throw this.wrong(name, "an object");
    return new Fields(this.path, value, `${this.#prefix}${name}.`);
  }
}
