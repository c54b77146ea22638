/**
 * The angles of rotary position embedding (arXiv 2104.09864), from a model's configuration. The rotation itself is an op.
 *
 * @module
 */

import { VecInferError } from "../device.ts";
import type { RopeScaling } from "../weights/model_config.ts";

/** What the frequencies of a model follow from. */
export interface RopeConfig {
  /** Channels of a head. */
  readonly headDim: number;
  /** Base of the frequencies. */
  readonly ropeTheta: number;
  /** Scaling, or null. */
  readonly ropeScaling?: RopeScaling | null;
}

/**
 * The headDim / 2 angles a position of each pair of channels: theta^(-2i / headDim), scaled. Throws VecInferError for a
 * scaling it does not know.
 */
export function ropeFrequencies(config: RopeConfig): Float32Array {
  const { headDim, ropeTheta, ropeScaling } = config;
  if (headDim < 2 || headDim % 2 !== 0) throw refuse("headDim: expected an even number from 2 on", headDim);
  if (ropeScaling?.type === "factors" && ropeScaling.factors.length !== headDim / 2) {
    throw refuse(`factors: expected ${headDim / 2} of them`, ropeScaling.factors.length);
  }
  const scale = ropeScaling ? frequencyScale(ropeScaling) : (frequency: number) => frequency;
  return Float32Array.from({ length: headDim / 2 }, (_, i) => scale(ropeTheta ** (-2 * i / headDim), i));
}

function frequencyScale(scaling: RopeScaling): (frequency: number, i: number) => number {
  switch (scaling.type) {
    case "linear":
      return (frequency) => frequency / scaling.factor;
    case "factors":
      return (frequency, i) => frequency / scaling.factors[i];
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
      throw refuse("ropeScaling: expected linear, llama3 or factors", JSON.stringify((scaling as RopeScaling).type));
  }
}

function refuse(cause: string, found: unknown): VecInferError {
  return new VecInferError("INVALID_ARGUMENT", `ropeFrequencies: ${cause}, found ${found}`);
}
