/** Rotary position embedding (arXiv 2104.09864). @module */
import type { Tensor } from "../tensor.ts";
import { expectInteger, expectRows, expectSize, expectStrided, mismatch, type StrideOptions } from "./check.ts";

/** Frequencies stretched for contexts longer than those of pre-training; rope_type of Hugging Face by the same names. */
export type RopeFrequencyScaling =
  | {
    /** No scaling. */
    readonly type: "default";
  }
  | {
    /** All frequencies divided by `factor`. */
    readonly type: "linear";
    /** Divisor. */
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
    /** Each frequency divided by a factor of its own. */
    readonly type: "factors";
    /** Divisors, headDim / 2 of them. */
    readonly factors: readonly number[];
  };

/** What the frequencies of a model follow from. */
export interface RopeConfig {
  /** Channels of a head. */
  readonly headDim: number;
  /** Base of the frequencies. */
  readonly ropeTheta: number;
  /** Scaling, or null. */
  readonly ropeScaling?: RopeFrequencyScaling | null;
}

/**
 * The headDim / 2 angles a position of each pair of channels: theta^(-2i / headDim), scaled. Throws VecInferError for a
 * scaling it does not know.
 */
export function ropeFrequencies(config: RopeConfig): Float32Array {
  const { headDim, ropeTheta, ropeScaling } = config;
  expectInteger("ropeFrequencies", "headDim / 2", headDim / 2, 1);
  if (ropeScaling?.type === "factors" && ropeScaling.factors.length !== headDim / 2) {
    throw mismatch("ropeFrequencies", "factors", `${headDim / 2} of them`, ropeScaling.factors.length);
  }
  const scale = frequencyScale(ropeScaling ?? { type: "default" });
  return Float32Array.from({ length: headDim / 2 }, (_, i) => scale(ropeTheta ** (-2 * i / headDim), i));
}

function frequencyScale(scaling: RopeFrequencyScaling): (frequency: number, i: number) => number {
  switch (scaling.type) {
    case "default":
      return (frequency) => frequency;
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
      throw mismatch(
        "ropeFrequencies",
        "ropeScaling",
        "default, linear, llama3 or factors",
        JSON.stringify((scaling as { type: unknown }).type),
      );
  }
}

/** Options of {@linkcode rope}. */
export interface RopeOptions extends StrideOptions {
  /** Heads to rotate, from the start of each row; by default all of `x`. */
  readonly heads?: number;
  /** Channels of a head; by default twice the frequencies. */
  readonly headDim?: number;
}

/**
 * Rotates in place: for i < headDim / 2 and angle = positions[r] * frequencies[i], (x_i, x_{i + headDim/2}) becomes
 * (x_i cos - x_{i + headDim/2} sin, x_{i + headDim/2} cos + x_i sin). x f32 [rows, heads, headDim], positions i32 [rows],
 * frequencies f32 [headDim / 2].
 */
export function rope(x: Tensor, positions: Tensor, frequencies: Tensor, options: RopeOptions = {}): void {
  const { device } = x, { rows = x.length, stride = x.stride, headDim = 2 * frequencies.size } = options;
  const { heads = x.width / headDim } = options;
  expectInteger("rope", "rows", rows);
  expectInteger("rope", "headDim", headDim, 2);
  expectInteger("rope", "heads", heads, 1);
  expectStrided("rope", "x", x, device, rows, heads * headDim, stride);
  expectRows("rope", "positions", positions, device, "i32", rows, 1);
  expectSize("rope", "frequencies", frequencies, device, "f32", headDim / 2);
  const { native, context } = device;
  const status = native.vi_rope(
    context,
    x.pointer,
    positions.pointer,
    frequencies.pointer,
    rows,
    heads,
    headDim,
    stride,
  );
  if (status !== 0) device.check("vi_rope", status);
}
