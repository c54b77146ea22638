/**
 * The angles of rotary position embedding (arXiv 2104.09864), from a model's configuration. The rotation itself is an op.
 *
 * @module
 */

import { VecInferError } from "../device.ts";
import type { ModelConfig, RopeScaling } from "../weights/model_config.ts";

/** What the frequencies of a model follow from. */
export interface RopeConfig {
  /** Channels of a head. */
  readonly headDim: number;
  /** Channels of a head that are rotated, from the first on. Default: all. */
  readonly rotaryDim?: number;
  /** Base of the frequencies. */
  readonly ropeTheta: number;
  /** Scaling, or null. LongRoPE is taken with its long factors. */
  readonly ropeScaling?: RopeScaling | null;
}

/**
 * The rotaryDim / 2 angles a position of each pair of channels: theta^(-2i / rotaryDim), scaled. Throws VecInferError for a
 * scaling it does not know.
 */
export function ropeFrequencies(config: RopeConfig): Float32Array {
  const { headDim, rotaryDim = headDim, ropeTheta, ropeScaling } = config;
  if (rotaryDim < 2 || rotaryDim % 2 !== 0) throw refuse("rotaryDim: expected an even number from 2 on", rotaryDim);
  const scale = ropeScaling ? frequencyScale(ropeScaling, rotaryDim, ropeTheta) : (frequency: number) => frequency;
  return Float32Array.from({ length: rotaryDim / 2 }, (_, i) => scale(ropeTheta ** (-2 * i / rotaryDim), i));
}

/** The factor of rotated queries and keys. */
export function ropeFactor(scaling: RopeScaling | null | undefined): number {
  return scaling?.type === "yarn" || scaling?.type === "longrope" ? scaling.attentionFactor : 1;
}

/** A configuration for sequences of at most `context` tokens: LongRoPE's long factors are the short ones where these suffice. */
export function atContext(config: ModelConfig, context: number = config.contextLength): ModelConfig {
  const { ropeScaling: scaling } = config;
  if (scaling?.type !== "longrope" || context > scaling.originalContextLength) return config;
  return { ...config, ropeScaling: { ...scaling, longFactors: scaling.shortFactors } };
}

/** How a model rotates, where that follows from the context it was opened for: LongRoPE's factors. */
export function describeRope({ ropeScaling: scaling }: ModelConfig): string | undefined {
  if (scaling?.type !== "longrope") return undefined;
  const which = scaling.longFactors === scaling.shortFactors ? "up to" : "over";
  return `longrope, factors for contexts ${which} ${scaling.originalContextLength} tokens`;
}

type FrequencyScale = (frequency: number, i: number) => number;

function frequencyScale(scaling: RopeScaling, rotaryDim: number, theta: number): FrequencyScale {
  switch (scaling.type) {
    case "linear":
      return (frequency) => frequency / scaling.factor;
    case "factors":
      return divided(scaling.factors, rotaryDim);
    case "longrope":
      return divided(scaling.longFactors, rotaryDim);
    case "yarn":
      return yarn(scaling, rotaryDim, theta);
    case "llama3": {
      // With n the turns of a frequency in the original context, the kept part grows linearly from n = low to n = high.
      const { factor, lowFrequencyFactor: low, highFrequencyFactor: high, originalContextLength } = scaling;
      return (frequency) => {
        const turns = originalContextLength * frequency / (2 * Math.PI);
        const kept = Math.min(1, Math.max(0, (turns - low) / (high - low)));
        return frequency * (kept + (1 - kept) / factor);
      };
    }
    default:
      throw refuse(
        "ropeScaling: expected linear, llama3, yarn, longrope or factors",
        JSON.stringify((scaling as RopeScaling).type),
      );
  }
}

function divided(factors: readonly number[], rotaryDim: number): FrequencyScale {
  if (factors.length !== rotaryDim / 2) throw refuse(`factors: expected ${rotaryDim / 2} of them`, factors.length);
  return (frequency, i) => frequency / factors[i];
}

/** The pair that turns n times in the original context is i(n) = dim ln(context / (2 pi n)) / (2 ln theta); the kept part falls from there. */
function yarn(scaling: RopeScaling & { type: "yarn" }, rotaryDim: number, theta: number): FrequencyScale {
  const { factor, originalContextLength, betaFast, betaSlow, truncate } = scaling;
  const pair = (turns: number) =>
    rotaryDim * Math.log(originalContextLength / (turns * 2 * Math.PI)) / (2 * Math.log(theta));
  const [fast, slow] = [pair(betaFast), pair(betaSlow)];
  const low = Math.max(0, truncate ? Math.floor(fast) : fast);
  const high = Math.min(rotaryDim - 1, truncate ? Math.ceil(slow) : slow), width = high === low ? 0.001 : high - low;
  return (frequency, i) => {
    const interpolated = Math.min(1, Math.max(0, (i - low) / width));
    return frequency * (1 - interpolated + interpolated / factor);
  };
}

function refuse(cause: string, found: unknown): VecInferError {
  return new VecInferError("INVALID_ARGUMENT", `ropeFrequencies: ${cause}, found ${found}`);
}
