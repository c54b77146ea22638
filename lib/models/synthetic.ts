/**
 * Models of published shapes with weights drawn from a seed: for measuring speed and memory without a download. What they
 * write means nothing.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { randomNormal } from "../ops/ops.ts";
import type { ModelConfig } from "../weights/model_config.ts";
import { Decoder } from "./decoder.ts";
import { type Model, planOf } from "./model.ts";
import { DecoderWeights } from "./weights/decoder_weights.ts";

/** RoPE scaling of Llama 3.1 and 3.2, which differ in the factor. */
const llama3 = (factor: number): ModelConfig["ropeScaling"] => ({
  type: "llama3",
  factor,
  lowFrequencyFactor: 1,
  highFrequencyFactor: 4,
  originalContextLength: 8192,
});

const common = { attentionBias: false, mlpBias: false, bosId: null, eosIds: [] } as const;

/**
 * The shapes, by name, as in the config.json of the embedded model, of meta-llama/Llama-3.1-8B, Llama-3.1-70B and Llama-3.2-1B, of
 * Qwen/Qwen2.5-7B, Qwen3-8B and Qwen3-30B-A3B, of mistralai/Mistral-7B-v0.3, of the text model in google/gemma-3-12b-it, and of
 * openai/gpt-oss-20b with all its weights in bf16.
 */
export const SYNTHETIC: Readonly<Record<string, ModelConfig>> = {
  "tiny-llama": {
    ...common,
    architecture: "LlamaForCausalLM",
    vocabularySize: 6144,
    hiddenSize: 256,
    intermediateSize: 640,
    layers: 8,
    heads: 8,
    kvHeads: 2,
    headDim: 64,
    contextLength: 2048,
    rmsNormEps: 1e-05,
    ropeTheta: 10000.0,
    ropeScaling: null,
    tieWordEmbeddings: true,
  },
  "llama-3.1-8b": {
    ...common,
    architecture: "LlamaForCausalLM",
    vocabularySize: 128256,
    hiddenSize: 4096,
    intermediateSize: 14336,
    layers: 32,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    contextLength: 131072,
    rmsNormEps: 1e-5,
    ropeTheta: 500000,
    ropeScaling: llama3(8),
    tieWordEmbeddings: false,
  },
  "llama-3.2-1b": {
    ...common,
    architecture: "LlamaForCausalLM",
    vocabularySize: 128256,
    hiddenSize: 2048,
    intermediateSize: 8192,
    layers: 16,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    contextLength: 131072,
    rmsNormEps: 1e-5,
    ropeTheta: 500000,
    ropeScaling: llama3(32),
    tieWordEmbeddings: true,
  },
  "qwen2.5-7b": {
    ...common,
    architecture: "Qwen2ForCausalLM",
    vocabularySize: 152064,
    hiddenSize: 3584,
    intermediateSize: 18944,
    layers: 28,
    heads: 28,
    kvHeads: 4,
    headDim: 128,
    contextLength: 131072,
    rmsNormEps: 1e-6,
    ropeTheta: 1e6,
    ropeScaling: null,
    tieWordEmbeddings: false,
    attentionBias: true,
  },
  "llama-3.1-70b": {
    ...common,
    architecture: "LlamaForCausalLM",
    vocabularySize: 128256,
    hiddenSize: 8192,
    intermediateSize: 28672,
    layers: 80,
    heads: 64,
    kvHeads: 8,
    headDim: 128,
    contextLength: 131072,
    rmsNormEps: 1e-5,
    ropeTheta: 500000,
    ropeScaling: llama3(8),
    tieWordEmbeddings: false,
  },
  "mistral-7b": {
    ...common,
    architecture: "MistralForCausalLM",
    vocabularySize: 32768,
    hiddenSize: 4096,
    intermediateSize: 14336,
    layers: 32,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    contextLength: 32768,
    rmsNormEps: 1e-5,
    ropeTheta: 1e6,
    ropeScaling: null,
    tieWordEmbeddings: false,
  },
  "qwen3-8b": {
    ...common,
    architecture: "Qwen3ForCausalLM",
    vocabularySize: 151936,
    hiddenSize: 4096,
    intermediateSize: 12288,
    layers: 36,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    contextLength: 40960,
    rmsNormEps: 1e-6,
    ropeTheta: 1e6,
    ropeScaling: null,
    tieWordEmbeddings: false,
  },
  "qwen3-30b-a3b": {
    ...common,
    architecture: "Qwen3MoeForCausalLM",
    vocabularySize: 151936,
    hiddenSize: 2048,
    intermediateSize: 6144,
    layers: 48,
    heads: 32,
    kvHeads: 4,
    headDim: 128,
    contextLength: 40960,
    rmsNormEps: 1e-6,
    ropeTheta: 1e6,
    ropeScaling: null,
    tieWordEmbeddings: false,
    experts: { count: 128, top: 8, intermediateSize: 768, normalized: true, denseLayers: [] },
  },
  "gemma3-12b": {
    ...common,
    architecture: "Gemma3ForCausalLM",
    vocabularySize: 262208,
    hiddenSize: 3840,
    intermediateSize: 15360,
    layers: 48,
    heads: 16,
    kvHeads: 8,
    headDim: 256,
    contextLength: 131072,
    rmsNormEps: 1e-6,
    ropeTheta: 1e6,
    ropeScaling: { type: "linear", factor: 8 },
    windowRope: { ropeTheta: 10000, ropeScaling: null },
    windows: everyLayer(48, (layer) => layer % 6 === 5 ? 0 : 1024),
    multipliers: { embedding: Math.sqrt(3840), attention: 1 / 16, residual: 1, logits: 1 },
    tieWordEmbeddings: true,
  },
  "gpt-oss-20b": {
    ...common,
    architecture: "GptOssForCausalLM",
    vocabularySize: 201088,
    hiddenSize: 2880,
    intermediateSize: 2880,
    layers: 24,
    heads: 64,
    kvHeads: 8,
    headDim: 64,
    contextLength: 131072,
    rmsNormEps: 1e-5,
    ropeTheta: 150000,
    ropeScaling: {
      type: "yarn",
      factor: 32,
      originalContextLength: 4096,
      betaFast: 32,
      betaSlow: 1,
      truncate: false,
      attentionFactor: 0.1 * Math.log(32) + 1,
    },
    windows: everyLayer(24, (layer) => layer % 2 === 0 ? 128 : 0),
    tieWordEmbeddings: false,
    attentionBias: true,
    experts: { count: 32, top: 4, intermediateSize: 2880, normalized: true, denseLayers: [] },
  },
};

function everyLayer(layers: number, window: (layer: number) => number): number[] {
  return Array.from({ length: layers }, (_, layer) => window(layer));
}

/** The shape of a synthetic model. Throws RangeError that names the shapes there are. */
export function syntheticConfig(name: string): ModelConfig {
  if (Object.hasOwn(SYNTHETIC, name)) return SYNTHETIC[name];
  throw new RangeError(`synthetic model "${name}" is unknown; there are ${Object.keys(SYNTHETIC).join(", ")}`);
}

/**
 * Draws a model on the device: products and embedding N(0, 0.02^2), as before training, biases the same, norms 1. Normed
 * activations have a mean square of 1, so what each layer adds to the residual stream, and the stream itself, stay of the order
 * of 1 to 10. The same name and seed give the same weights on both libraries, up to rounding.
 */
export function syntheticModel(device: Device, config: ModelConfig, seed: number = 0): Model {
  const plan = planOf(config), weights = new DecoderWeights(device, plan);
  try {
    let drawn = 0;
    for (const { tensor, kind } of weights.tensors) {
      if (kind === "norm") randomNormal(tensor, { mean: 1, deviation: 0 });
      else randomNormal(tensor, { seed: (seed * 65537 + drawn++) | 0, deviation: 0.02 });
    }
    return new Decoder(device, config, plan, weights);
  } catch (error) {
    weights[Symbol.dispose]();
    throw error;
  }
}

/** `count` token ids of a model, drawn from a seed: a prompt for a model that has no tokenizer. */
export function syntheticPrompt(config: ModelConfig, count: number, seed: number = 0): Int32Array {
  let state = (seed * 2654435761 + 1013904223) >>> 0 || 1;
  return Int32Array.from({ length: count }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return Math.floor((state >>> 0) / 2 ** 32 * config.vocabularySize);
  });
}
