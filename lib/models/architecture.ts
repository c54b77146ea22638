/**
 * What an architecture says of itself, as data: the tensors of a model and what each layer does with them. The decoder
 * runs it, the weights are allocated, read, drawn and counted by it. What another architecture has beyond this becomes a field of
 * the part where it acts, and a line of the function in `decoder.ts` that runs this part.
 *
 * @module
 */

import type { ModelConfig } from "../weights/model_config.ts";
import type { RopeConfig } from "./rope.ts";

/** One architecture. Names of tensors are those of a model folder, without ".weight". */
export interface Architecture {
  /** Its name in Hugging Face transformers, as config.json has it. */
  readonly name: string;
  /** What the model of a configuration is made of. */
  plan(config: ModelConfig): ModelPlan;
}

/** A model: embedding, layers, norm, head. */
export interface ModelPlan {
  /** Token embedding, [vocabulary, hidden]. */
  readonly embedding: Matrix;
  /** The layers, in order. They may differ. */
  readonly layers: readonly LayerPlan[];
  /** Name of the norm before the head. */
  readonly norm: string;
  /** Output projection, [vocabulary, hidden]. Where it is tied to the embedding: that matrix. */
  readonly head: Matrix;
}

/** A pre-norm layer: x += attention(norm(x)), then x += feedForward(norm(x)). */
export interface LayerPlan {
  /** Grouped-query attention. */
  readonly attention: AttentionPlan;
  /** What follows it. */
  readonly feedForward: FeedForwardPlan;
}

/** Attention of a layer: query head h reads key/value head h / (heads / kvHeads). */
export interface AttentionPlan {
  /** Name of the norm of its input. */
  readonly norm: string;
  /** Query, key and value projections. */
  readonly qkv: Matrix;
  /** Output projection. */
  readonly output: Matrix;
  /** Query heads. */
  readonly heads: number;
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head. */
  readonly headDim: number;
  /** How queries and keys are rotated. */
  readonly rotation: RopeConfig;
  /** Factor of the scores. */
  readonly scale: number;
}

/** Feed-forward part of a layer: down(activation(gate(x)) * up(x)). */
export interface FeedForwardPlan {
  /** Name of the norm of its input. */
  readonly norm: string;
  /** Gate and up projections. */
  readonly gateUp: Matrix;
  /** Of the gate. */
  readonly activation: "silu";
  /** Down projection. */
  readonly down: Matrix;
}

/** A matrix [out, in]: tensors of a file one under the other, so that one product does the work of several. */
export interface Matrix {
  /** The tensors' names and rows. */
  readonly parts: readonly (readonly [name: string, rows: number])[];
  /** Input channels. */
  readonly width: number;
  /** Whether each part has a bias beside its weight. */
  readonly bias: boolean;
}
