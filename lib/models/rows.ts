/**
 * The memory of rows on their way through a layer, which decode steps and chunks of a prompt have in common.
 *
 * @module
 */

import type { Tensor } from "../tensor.ts";
import type { FeedForwardPlan, ModelPlan } from "./architecture.ts";

/** The widths of rows that a plan needs, in elements. */
export interface RowSizes {
  /** Vocabulary. */
  readonly vocabulary: number;
  /** Residual stream. */
  readonly hidden: number;
  /** Queries of a layer. */
  readonly queries: number;
  /** Keys of a layer; values are as many. */
  readonly keys: number;
  /** Inner channels of a feed-forward part; 0 where all layers have experts. */
  readonly inner: number;
  /** Whether the gate of one is a call of its own, behind its products. */
  readonly gateApart: boolean;
  /** Whether a row of the residual stream is needed beside the stream: for norms behind a part, factors, experts. */
  readonly beside: boolean;
  /** Experts, those that a token goes through, and their inner channels; null without. */
  readonly experts: { readonly count: number; readonly top: number; readonly inner: number } | null;
}

/** Rows on their way through the experts. */
export interface ExpertRows {
  /** The router's logits, f32 [rows, experts]. */
  readonly logits: Tensor;
  /** The chosen experts, i32 [rows, top]. */
  readonly chosen: Tensor;
  /** Their weights, f32 [rows, top]. */
  readonly weights: Tensor;
  /** Gate and up, f32 [rows, top, 2 inner]. */
  readonly gateUp: Tensor;
  /** The same, [rows * top, 2 inner]. */
  readonly gateUpRows: Tensor;
  /** Inner channels, f32 [rows, top, inner]. */
  readonly gated: Tensor;
  /** The same, [rows * top, inner]. */
  readonly gatedRows: Tensor;
  /** Outputs, f32 [rows, top, hidden]. */
  readonly out: Tensor;
}

/** Rows that pass through a layer together, but for their residual stream. */
export interface LayerRows {
  /** Output of attention, f32, or bf16 in prompts whose plan says so, [rows, heads * headDim]. */
  readonly attention: Tensor;
  /** Inner channels of the feed-forward part, [rows, inner], of the same type; f32 where the gate is a call of its own. */
  readonly gated: Tensor;
  /** Gate and up where that is so, f32 [rows, 2 inner]; one element elsewhere. */
  readonly gateUp: Tensor;
  /** A row beside the residual stream, f32 [rows, hidden]; one element where no layer needs it. */
  readonly beside: Tensor;
  /** Memory for experts, whose products take f32 alone; null without. */
  readonly experts: ExpertRows | null;
}

/** What a plan needs. */
export function rowSizes({ embedding, layers }: ModelPlan): RowSizes {
  const [{ attention: { heads, kvHeads, headDim } }] = layers;
  const parts = layers.map(({ feedForward }) => feedForward);
  const dense = parts.filter(({ router }) => !router), mixed = parts.filter(({ router }) => router);
  return {
    vocabulary: embedding.parts[0][1],
    hidden: embedding.width,
    queries: heads * headDim,
    keys: kvHeads * headDim,
    inner: Math.max(0, ...dense.map(({ down }) => down.width)),
    gateApart: dense.some(({ activation }) => activation !== "silu"),
    beside: layers.some(({ attention, feedForward, residualScale = 1 }) =>
      attention.outputNorm !== undefined || feedForward.outputNorm !== undefined || feedForward.router !== undefined ||
      residualScale !== 1
    ),
    experts: mixed.length > 0 ? expertSizes(mixed[0]) : null,
  };
}

function expertSizes({ router, down }: FeedForwardPlan): RowSizes["experts"] {
  return { count: down.experts!, top: router!.top, inner: down.width };
}

/** Allocates a tensor of a shape; who gives it owns what it makes. */
type Make = (dtype: "f32" | "bf16" | "i32", ...shape: number[]) => Tensor;

/** Allocates it for `rows` rows; `activations` is the type of what products take from attention and gate. */
export function layerRows(
  make: Make,
  sizes: RowSizes,
  rows: number,
  activations: "f32" | "bf16" = "f32",
): LayerRows {
  const { experts, hidden, inner, queries, gateApart } = sizes;
  return {
    attention: make(activations, rows, queries),
    gated: make(gateApart ? "f32" : activations, rows, Math.max(1, inner)),
    gateUp: make("f32", rows, gateApart ? 2 * inner : 1),
    beside: make("f32", rows, sizes.beside ? hidden : 1),
    experts: experts && expertRows(make, experts, hidden, rows),
  };
}

function expertRows(
  make: Make,
  { count, top, inner }: NonNullable<RowSizes["experts"]>,
  hidden: number,
  rows: number,
): ExpertRows {
  const gateUp = make("f32", rows, top, 2 * inner), gated = make("f32", rows, top, inner);
  return {
    logits: make("f32", rows, count),
    chosen: make("i32", rows, top),
    weights: make("f32", rows, top),
    gateUp,
    gateUpRows: gateUp.view([rows * top, 2 * inner]),
    gated,
    gatedRows: gated.view([rows * top, inner]),
    out: make("f32", rows, top, hidden),
  };
}
