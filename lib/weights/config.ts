/**
 * `config.json` of a model, checked and typed. A field of the wrong type, an architecture or a shape that the runtime
 * does not have, is refused by name; nothing is guessed.
 *
 * @module
 */

import { existsSync, type Stats, statSync } from "node:fs";
import { join } from "node:path";
import { type ArchitectureConfig, architectures } from "./architectures.ts";
import { Fields } from "./fields.ts";
import { Gguf } from "./gguf.ts";
import { ggufConfig } from "./gguf_llama.ts";
import { fileErrorCause, isObject, type JsonObject, readObject, WeightsError } from "./json.ts";
import { checkShape, type ModelConfig, type RopeScaling } from "./model_config.ts";

export type { ModelConfig, RopeScaling } from "./model_config.ts";

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
  const architecture = architectureOf(config), { biases } = architectures[architecture];

  const hiddenSize = config.count("hidden_size");
  const heads = config.count("num_attention_heads");
  const kvHeads = config.optionalCount("num_key_value_heads") ?? heads;
  const headDim = config.optionalCount("head_dim") ?? hiddenSize / heads;
  checkShape(path, heads, kvHeads, headDim);
  const rope = readRope(config);
  return {
    architecture,
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
    ...biases(config),
    bosId: config.ids("bos_token_id")[0] ?? null,
    eosIds: readEosIds(folder, config),
  };
}

/** The architecture's name. Throws where the runtime does not have it, or the weights are in a format it does not read. */
function architectureOf(config: Fields): string {
  const { path } = config, named = config.value("architectures");
  if (!Array.isArray(named) || typeof named[0] !== "string") {
    throw config.wrong("architectures", "a list with one name");
  }
  const [name] = named;
  if (!Object.hasOwn(architectures, name)) {
    const supported = Object.keys(architectures).join(", ");
    throw new WeightsError(`${path}: the architecture ${name} is not supported; supported: ${supported}`);
  }
  const { modelType, check }: ArchitectureConfig = architectures[name];
  for (const [field, only] of [["model_type", modelType], ["hidden_act", "silu"]]) {
    const value = config.value(field);
    if (value !== undefined && value !== only) throw config.wrong(field, JSON.stringify(only));
  }
  check?.(config);
  const quantized = config.value("quantization_config");
  if (isObject(quantized)) {
    const method = (quantized as JsonObject).quant_method;
    throw new WeightsError(
      `${path}: the weights are quantized (${String(method ?? "unnamed method")}), which is not supported; ` +
        "take the model's bf16, f16 or f32 version",
    );
  }
  return name;
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
