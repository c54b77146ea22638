/**
 * What an architecture says of itself, as data: the tensors of a model and what each layer does with them. The decoder
 * runs it, the weights are allocated, read, drawn and counted by it. What another architecture has beyond this becomes a field of
 * the part where it acts, and a line of the function in `layer.ts` or `feed_forward.ts` that runs this part.
 *
 * @module
 */

import type { GateActivation, RouteMethod } from "../ops/ops.ts";
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
  /** Factor of the embedding. Default 1. */
  readonly embeddingScale?: number;
  /** The layers, in order. They may differ. */
  readonly layers: readonly LayerPlan[];
  /** Name of the norm before the head. */
  readonly norm: string;
  /** Output projection, [vocabulary, hidden]. Where it is tied to the embedding: that matrix. */
  readonly head: Matrix;
  /** Factor of the logits. Default 1. */
  readonly logitScale?: number;
  /** Soft cap of the logits, cap tanh(logit / cap). Default: none. */
  readonly logitCap?: number;
  /** What a model folder leaves out of the norms' weights: 1 where it has w of 1 + w, as Gemma's have. GGUF files have it in. Default 0. */
  readonly normOffset?: number;
}

/** A layer: x += factor norm(attention(norm(x))), then the same with the feed-forward part. Each of the norms may be absent. */
export interface LayerPlan {
  /** Grouped-query attention. */
  readonly attention: AttentionPlan;
  /** What follows it. */
  readonly feedForward: FeedForwardPlan;
  /** Factor of what both add. Default 1. */
  readonly residualScale?: number;
}

/** Attention of a layer: query head h reads key/value head h / (heads / kvHeads). */
export interface AttentionPlan {
  /** Name of the norm of its input. */
  readonly norm?: string;
  /** Query, key and value projections. */
  readonly qkv: Matrix;
  /** Norms of queries and keys before their rotation. */
  readonly headNorms?: HeadNorms;
  /** Output projection. */
  readonly output: Matrix;
  /** Name of the norm of its output. */
  readonly outputNorm?: string;
  /** Query heads. */
  readonly heads: number;
  /** Key/value heads. */
  readonly kvHeads: number;
  /** Channels of a head. */
  readonly headDim: number;
  /** How queries and keys are rotated; null where they are not. */
  readonly rotation: Rotation | null;
  /** Factor of the scores. */
  readonly scale: number;
  /** Soft cap of the scaled scores, cap tanh(score / cap). Default: none. */
  readonly softCap?: number;
  /** Name of the query heads' further logits in the softmax, which have no value (attention sinks), one a head. */
  readonly sinkLogits?: string;
}

/** Norms of queries and keys: of each head for itself, with one weight [headDim], or of a row as a whole. */
export interface HeadNorms {
  /** Name of the queries' norm. */
  readonly queries: string;
  /** Name of the keys' norm. */
  readonly keys: string;
  /** Whether all heads of a row are one vector. */
  readonly whole: boolean;
}

/** How queries and keys are rotated. */
export interface Rotation extends RopeConfig {
  /** Whether channels 2i and 2i + 1 turn together, in place of i and i + rotaryDim / 2. */
  readonly interleaved?: boolean;
}

/** Feed-forward part of a layer: down(activation(gate(x)) * up(x)), or a weighted sum of this over the chosen of many experts. */
export interface FeedForwardPlan {
  /** Name of the norm of its input. */
  readonly norm?: string;
  /** Gate and up projections; of all experts, one after another. */
  readonly gateUp: Matrix;
  /** Of the gate. */
  readonly activation: GateActivation;
  /** Down projection; of all experts, one after another. */
  readonly down: Matrix;
  /** Name of the norm of its output. */
  readonly outputNorm?: string;
  /** The choice of experts, where there are any. */
  readonly router?: RouterPlan;
}

/** The choice of a token's experts. */
export interface RouterPlan {
  /** The logits' projection, [experts, hidden]. */
  readonly logits: Matrix;
  /** Experts that a token goes through. */
  readonly top: number;
  /** What the weights of the chosen are. */
  readonly method: RouteMethod;
}

/** A matrix [out, in]: tensors of a file one under the other, so that one product does the work of several. */
export interface Matrix {
  /** The tensors' names and rows. */
  readonly parts: readonly (readonly [name: string, rows: number])[];
  /** Input channels. */
  readonly width: number;
  /** Whether each part has a bias beside its weight. */
  readonly bias: boolean;
  /** Of how many experts these are the matrices, one after another: [experts, out, in]. Absent: it is one matrix. */
  readonly experts?: number;
}
