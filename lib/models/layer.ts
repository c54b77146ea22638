/**
 * One layer of a decoder, written once: it serves decode steps and prompts, which differ in how their rows attend.
 *
 * @module
 */

import type { Tensor } from "../tensor.ts";
import {
  attention,
  attentionPrefill,
  headNorm,
  type KvLayer,
  linear,
  rope,
  ropeRound,
  type ScoreOptions,
} from "../ops/ops.ts";
import { contribute, type FeedForward, feedForward, type Rows } from "./feed_forward.ts";
import type { Chunk } from "./prompt.ts";
import type { Step } from "./step.ts";
import type { Product } from "./weights/decoder_weights.ts";

/** A layer: weights, and what the plan says of it. */
export interface Layer extends FeedForward {
  /** The queries' part of qkv. */
  readonly q: Product;
  /** The keys' and values' part. */
  readonly kv: Product;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Whether the norms of queries and keys are of all heads together. */
  readonly wholeNorms: boolean;
  /** How queries and keys are rotated; null where they are not. */
  readonly turn: Turn | null;
  /** Angles of the call that rotates and stores in one; null where there is more to do than this call does. */
  readonly plainFrequencies: Tensor | null;
  /** What becomes of scores. */
  readonly scores: Required<ScoreOptions>;
}

/** A rotation. */
export interface Turn {
  /** Angles a position, f32 [rotaryDim / 2]. */
  readonly frequencies: Tensor;
  readonly rotaryDim: number;
  readonly interleaved: boolean;
  /** Factor of the rotated channels. */
  readonly factor: number;
}

/** From the residual stream of the first `count` of `rows` to `rows.attention`; `cached` is the layer's cache. */
type Attend<R extends Rows> = (layer: Layer, rows: R, count: number, cached: KvLayer) => void;

/** One layer: x += attention(norm(x)), then x += feedForward(norm(x)). */
export function runLayer<R extends Rows>(layer: Layer, x: R, rows: number, cached: KvLayer, attend: Attend<R>): void {
  attend(layer, x, rows, cached);
  contribute(x, x.attention, layer.output, layer.outputNorm, layer, rows);
  feedForward(layer, x, rows);
}

/** Norms the heads of queries or keys, where the layer does. */
function normHeads(
  x: Tensor,
  norm: Tensor | undefined,
  heads: number,
  layer: Layer,
  rows: number,
  stride: number,
): void {
  if (norm === undefined) return;
  const { headDim, wholeNorms, epsilon } = layer;
  const sizes = wholeNorms ? { heads: 1, headDim: heads * headDim } : { heads, headDim };
  headNorm(x, norm, { ...sizes, epsilon, rows, stride });
}

/** Rotates queries or keys, where the layer does. */
function turnHeads(x: Tensor, positions: Tensor, heads: number, layer: Layer, rows: number, stride: number): void {
  const { headDim, turn } = layer;
  if (turn !== null) rope(x, positions, turn.frequencies, { ...turn, rows, heads, headDim, stride });
}

/** Queries, keys and values, or a part of them: to = part(norm(x)). */
function project(to: Tensor, x: Tensor, layer: Layer, part: Product, rows: number): void {
  linear(to, x, part.weight, { rows, norm: layer.attentionNorm, epsilon: layer.epsilon, bias: part.bias });
}

/** A decode step: queries, keys and values, stored; then the queries read the cache. */
export function attendStep(layer: Layer, step: Step, rows: number, cached: KvLayer): void {
  const { plainFrequencies } = layer;
  if (plainFrequencies === null) return attendObservedStep(layer, step, rows, cached);
  const { qkv, keys, values, slots, positions } = step, { heads, scores } = layer, stride = qkv.width;
  project(qkv, step.residual, layer, layer.qkv, rows);
  cached.ropeQuantize(qkv, keys, values, slots, positions, plainFrequencies, { rows, heads, stride });
  attention(step.attention, qkv, cached, slots, positions, { ...scores, rows, heads, stride });
}

/** The same with calls of their own for norms, rotation and storing, as the one need not leave rotated keys behind. */
export function attendObservedStep(layer: Layer, step: Step, rows: number, cached: KvLayer): void {
  const { qkv, keys, values, slots, positions } = step, { heads, kvHeads, scores } = layer, stride = qkv.width;
  project(qkv, step.residual, layer, layer.qkv, rows);
  normHeads(qkv, layer.queryNorm, heads, layer, rows, stride);
  normHeads(keys, layer.keyNorm, kvHeads, layer, rows, stride);
  turnHeads(qkv, positions, heads + kvHeads, layer, rows, stride);
  cached.quantize(keys, values, slots, positions, { rows, stride });
  attention(step.attention, qkv, cached, slots, positions, { ...scores, rows, heads, stride });
}

/** A chunk of a prompt: over the keys and values of all its tokens, and over what the cache holds before them. */
export function attendChunk(layer: Layer, chunk: Chunk, rows: number, cached: KvLayer): void {
  const { queries } = chunk;
  const { heads, kvHeads, headDim, scores } = layer;
  if (chunk.qkv !== null) queriesKeysAndValues(layer, chunk, chunk.qkv);
  else {
    project(queries, chunk.residual, layer, layer.q, rows);
    normHeads(queries, layer.queryNorm, heads, layer, rows, queries.stride);
    turnHeads(queries, chunk.positions, heads, layer, rows, queries.stride);
  }
  for (const { part: { past, slot }, keys, values, first, row, rows } of chunk.spans) {
    attentionPrefill(chunk.attention.rows(row, rows), queries.rows(row, rows), keys, values, {
      ...scores,
      layer: past > 0 ? cached : null,
      slidingWindow: cached.slidingWindow,
      slot,
      past,
      first,
      rows,
      heads,
      kvHeads,
      headDim,
      kvStride: keys.stride,
    });
  }
}

/** Queries, keys and values of a chunk by one product. Rows attend to their own chunk's keys and values and to those before. */
function queriesKeysAndValues(layer: Layer, { prompt, residual, positions, first, rows }: Chunk, qkv: Tensor): void {
  const { heads, kvHeads, headDim, turn } = layer, q = heads * headDim, kv = kvHeads * headDim;
  const queries = qkv.columns(0, q), keys = qkv.columns(q, kv), values = qkv.columns(q + kv, kv);
  const to = { keys: prompt.keys.rows(first, rows), values: prompt.values.rows(first, rows) };
  project(qkv, residual, layer, layer.qkv, rows);
  normHeads(queries, layer.queryNorm, heads, layer, rows, qkv.stride);
  normHeads(keys, layer.keyNorm, kvHeads, layer, rows, qkv.stride);
  ropeRound(queries, keys, values, to, positions, turn?.frequencies ?? null, { ...turn, rows, headDim });
}

/** Keys and values of a chunk in one layer, before any row of the prompt attends: where queries have a product of their own. */
export function keysAndValues(layer: Layer, chunk: Chunk): void {
  const { kv, rows } = chunk, { kvHeads } = layer;
  project(kv, chunk.residual, layer, layer.kv, rows);
  normHeads(kv, layer.keyNorm, kvHeads, layer, rows, kv.width);
  turnHeads(kv, chunk.positions, kvHeads, layer, rows, kv.width);
}
