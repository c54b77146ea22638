/**
 * Models of published shapes with weights drawn from a seed: for measuring speed and memory without a download. What they
 * write means nothing.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { randomNormal } from "../ops/ops.ts";
import type { Tensor } from "../tensor.ts";
import type { ModelConfig } from "../weights/config.ts";
import { Llama } from "./llama.ts";
import type { Model } from "./model.ts";
import { LlamaWeights } from "./llama_weights.ts";

/** RoPE scaling of Llama 3.1 and 3.2, which differ in the factor. */
const llama3 = (factor: number): ModelConfig["ropeScaling"] => ({
  type: "llama3",
  factor,
  lowFrequencyFactor: 1,
  highFrequencyFactor: 4,
  originalContextLength: 8192,
});

const common = { architecture: "LlamaForCausalLM", mlpBias: false, bosId: null, eosIds: [] } as const;

/**
 * The shapes, by name, as in the config.json of the embedded model, of meta-llama/Llama-3.1-8B and Llama-3.2-1B, and of
 * Qwen/Qwen2.5-7B.
 */
export const SYNTHETIC: Readonly<Record<string, ModelConfig>> = {
  "tiny-llama": {
    ...common,
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
    attentionBias: false,
  },
  "llama-3.1-8b": {
    ...common,
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
    attentionBias: false,
  },
  "llama-3.2-1b": {
    ...common,
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
    attentionBias: false,
  },
  "qwen2.5-7b": {
    ...common,
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
};

/** The shape of a synthetic model. Throws RangeError that names the shapes there are. */
export function syntheticConfig(name: string): ModelConfig {
  if (Object.hasOwn(SYNTHETIC, name)) return SYNTHETIC[name];
  throw new RangeError(`synthetic model "${name}" is unknown; there are ${Object.keys(SYNTHETIC).join(", ")}`);
}

/**
 * Draws a model on the device: products and embedding N(0, 0.02^2), as before training, biases of query, key and value the
 * same, norms 1. Normed activations have a mean square of 1, so what each layer adds to the residual stream, and the stream
 * itself, stay of the order of 1 to 10. The same name and seed give the same weights on both libraries, up to rounding.
 */
export function syntheticModel(device: Device, config: ModelConfig, seed: number = 0): Model {
  const weights = new LlamaWeights(device), { hiddenSize, intermediateSize, vocabularySize } = config;
  const qSize = config.heads * config.headDim, qkvSize = qSize + 2 * config.kvHeads * config.headDim;
  let drawn = 0;
  const draw = (...shape: number[]): Tensor => {
    const tensor = weights.allocate(...shape);
    randomNormal(tensor, { seed: (seed * 65537 + drawn++) | 0, deviation: 0.02 });
    return tensor;
  };
  const norm = (): Tensor => {
    const tensor = weights.allocate(hiddenSize);
    randomNormal(tensor, { mean: 1, deviation: 0 });
    return tensor;
  };
  try {
    weights.embedding = draw(vocabularySize, hiddenSize);
    for (let i = 0; i < config.layers; i++) {
      weights.layers.push({
        inputNorm: norm(),
        qkv: draw(qkvSize, hiddenSize),
        // Qwen 2.5 has no bias on the attention's output.
        qkvBias: config.attentionBias ? draw(qkvSize) : undefined,
        output: draw(hiddenSize, qSize),
        postNorm: norm(),
        gateUp: draw(2 * intermediateSize, hiddenSize),
        down: draw(hiddenSize, intermediateSize),
      });
    }
    weights.norm = norm();
    weights.head = config.tieWordEmbeddings ? weights.embedding : draw(vocabularySize, hiddenSize);
    return new Llama(device, config, weights);
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
