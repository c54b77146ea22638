/**
 * How `config.json` says that queries and keys are rotated: transformers 4 has `rope_theta`, `rope_scaling` and
 * `partial_rotary_factor`, transformers 5 all of them in `rope_parameters`.
 *
 * @module
 */

import type { ArchitectureConfig } from "./architectures.ts";
import type { Fields } from "./fields.ts";
import { WeightsError } from "./json.ts";
import type { ModelConfig, RopeScaling } from "./model_config.ts";

/** What a `config.json` says of rotations. */
export type RopeSettings = Pick<ModelConfig, "ropeTheta" | "ropeScaling" | "rotaryDim" | "windowRope">;

const SUPPORTED = "default, linear, llama3, yarn, longrope";

/** Reads it. Throws {@link WeightsError} for a scaling that the runtime does not have. */
export function readRope(config: Fields, headDim: number, architecture: ArchitectureConfig): RopeSettings {
  const parameters = config.object("rope_parameters");
  // One object a layer type, where layers differ.
  const nested = parameters?.object("full_attention") ?? parameters;
  const scaling = config.object("rope_scaling") ?? nested;
  const theta = scaling?.optionalPositive("rope_theta") ?? nested?.optionalPositive("rope_theta") ??
    config.optionalPositive("rope_theta") ?? architecture.ropeTheta ?? 10000;
  const rotaryDim = readRotaryDim([scaling, nested, config], headDim, architecture);
  return {
    ropeTheta: theta,
    ropeScaling: scaling ? readScaling(config, scaling, rotaryDim, architecture) : null,
    ...(rotaryDim !== headDim && { rotaryDim }),
    ...(architecture.localTheta !== undefined && {
      windowRope: readWindowRope(config, parameters?.object("sliding_attention"), rotaryDim, architecture),
    }),
  };
}

/** How layers with a window rotate. transformers 4 has a base for them, and scales the others alone. */
function readWindowRope(
  config: Fields,
  own: Fields | undefined,
  rotaryDim: number,
  architecture: ArchitectureConfig,
): ModelConfig["windowRope"] {
  const theta = own?.optionalPositive("rope_theta") ?? config.optionalPositive("rope_local_base_freq");
  return {
    ropeTheta: theta ?? architecture.localTheta!,
    ropeScaling: own ? readScaling(config, own, rotaryDim, architecture) : null,
  };
}

/** The rotated channels of a head: its part `partial_rotary_factor`, rounded down. */
function readRotaryDim(
  places: readonly (Fields | undefined)[],
  headDim: number,
  { partialRotary }: ArchitectureConfig,
): number {
  for (const fields of places) {
    const part = fields?.optionalPositive("partial_rotary_factor");
    if (part === undefined) continue;
    if (partialRotary === undefined && part !== 1) throw fields!.wrong("partial_rotary_factor", "1");
    const channels = Math.floor(headDim * part);
    if (part > 1 || channels < 2 || channels % 2 !== 0) {
      throw fields!.wrong("partial_rotary_factor", `a part of head_dim ${headDim} that is an even number of channels`);
    }
    return channels;
  }
  return Math.floor(headDim * (partialRotary ?? 1));
}

function readScaling(
  config: Fields,
  scaling: Fields,
  rotaryDim: number,
  { modelType }: ArchitectureConfig,
): RopeScaling | null {
  const key = scaling.has("rope_type") ? "rope_type" : "type";
  let type = scaling.value(key) ?? "default";
  // Early files of Phi-3 have the names of drafts.
  if (modelType === "phi3" && (type === "su" || type === "yarn")) type = "longrope";
  switch (type) {
    case "default":
      return null;
    case "linear":
      return { type: "linear", factor: scaling.positive("factor") };
    case "llama3":
      return {
        type: "llama3",
        factor: scaling.positive("factor"),
        lowFrequencyFactor: scaling.positive("low_freq_factor"),
        highFrequencyFactor: scaling.positive("high_freq_factor"),
        originalContextLength: originalContext(config, scaling),
      };
    case "yarn":
      return readYarn(config, scaling);
    case "longrope": {
      const originalContextLength = originalContext(config, scaling), factor = stretch(config, scaling);
      const logarithm = Math.log(factor) / Math.log(originalContextLength);
      return {
        type: "longrope",
        shortFactors: scaling.positives("short_factor", rotaryDim / 2),
        longFactors: scaling.positives("long_factor", rotaryDim / 2),
        originalContextLength,
        attentionFactor: scaling.optionalPositive("attention_factor") ?? (factor <= 1 ? 1 : Math.sqrt(1 + logarithm)),
      };
    }
    case "dynamic":
      throw new WeightsError(
        `${scaling.wrong(key, SUPPORTED).message}: dynamic scaling turns all keys anew as a sequence grows, ` +
          "which a cache of rotated keys cannot follow",
      );
    default:
      throw scaling.wrong(key, `one of ${SUPPORTED}`);
  }
}

function readYarn(config: Fields, scaling: Fields): RopeScaling {
  const factor = stretch(config, scaling);
  const attention = (part: number) => factor <= 1 ? 1 : 0.1 * part * Math.log(factor) + 1;
  const part = scaling.optionalNumber("mscale"), all = scaling.optionalNumber("mscale_all_dim");
  return {
    type: "yarn",
    factor,
    originalContextLength: originalContext(config, scaling),
    betaFast: scaling.optionalNumber("beta_fast") || 32,
    betaSlow: scaling.optionalNumber("beta_slow") || 1,
    truncate: scaling.flag("truncate", true),
    attentionFactor: scaling.optionalPositive("attention_factor") ??
      (part && all ? attention(part) / attention(all) : attention(1)),
  };
}

/** The context of pre-training. The one at the top goes first, as in transformers. */
function originalContext(config: Fields, scaling: Fields): number {
  const key = "original_max_position_embeddings";
  return config.optionalCount(key) ?? scaling.optionalCount(key) ?? config.count("max_position_embeddings");
}

/** How many times longer contexts are than in pre-training. */
function stretch(config: Fields, scaling: Fields): number {
  return scaling.optionalPositive("factor") ??
    config.count("max_position_embeddings") / originalContext(config, scaling);
}
