/**
 * The part of a layer behind attention, and how both parts come to the residual stream.
 *
 * @module
 */

import type { Tensor } from "../tensor.ts";
import { add, expertLinear, expertSum, gate, linear, rmsnorm, route } from "../ops/ops.ts";
import type { FeedForwardPlan, RouterPlan } from "./architecture.ts";
import type { LayerRows } from "./rows.ts";
import type { LayerWeights, Product } from "./weights/decoder_weights.ts";

/** What the feed-forward part of a layer needs. */
export interface FeedForward extends LayerWeights {
  /** Of the gate. */
  readonly activation: FeedForwardPlan["activation"];
  /** What the weights of chosen experts are. */
  readonly route?: RouterPlan["method"];
  /** Of the norms. */
  readonly epsilon: number;
  /** Factor of what is added to the residual stream. */
  readonly residualScale: number;
}

/** Rows that pass through a layer together: a decode step, or a chunk of a prompt. */
export interface Rows extends LayerRows {
  /** Residual stream, f32 [rows, hidden]. */
  readonly residual: Tensor;
}

/** residual += factor norm(matrix(from)). */
export function contribute(
  rows: Rows,
  from: Tensor,
  { weight, bias }: Product,
  norm: Tensor | undefined,
  { residualScale: factor, epsilon }: FeedForward,
  count: number,
): void {
  if (norm === undefined && factor === 1) {
    linear(rows.residual, from, weight, { rows: count, output: "sum", bias });
    return;
  }
  linear(rows.beside, from, weight, { rows: count, bias });
  add(rows.residual, rows.beside, { norm, epsilon, factor, rows: count });
}

/** x += down(activation(gate(norm(x))) * up(norm(x))), or the weighted sum of that over the experts of each row. */
export function feedForward(layer: FeedForward, rows: Rows, count: number): void {
  if (layer.router !== undefined) return mixExperts(layer, layer.router, rows, count);
  const { residual, gated, gateUp: both } = rows, { gateUp, feedForwardNorm: norm, epsilon, activation } = layer;
  const options = { rows: count, norm, epsilon, bias: gateUp.bias };
  if (activation === "silu") linear(gated, residual, gateUp.weight, { ...options, output: activation });
  else {
    linear(both, residual, gateUp.weight, options);
    gate(gated, both, { activation, rows: count });
  }
  contribute(rows, gated, layer.down, layer.feedForwardOutputNorm, layer, count);
}

function mixExperts(layer: FeedForward, router: Product, { residual, beside, experts }: Rows, count: number): void {
  const { logits, chosen, weights, gateUp, gateUpRows, gated, gatedRows, out } = experts!, rows = { rows: count };
  rmsnorm(beside, residual, layer.feedForwardNorm!, layer.epsilon, rows);
  linear(logits, beside, router.weight, { ...rows, bias: router.bias });
  route(chosen, weights, logits, { method: layer.route, rows: count });
  expertLinear(gateUp, beside, layer.gateUp.weight, chosen, { ...rows, bias: layer.gateUp.bias });
  gate(gatedRows, gateUpRows, { activation: layer.activation, rows: count * chosen.width });
  expertLinear(out, gated, layer.down.weight, chosen, { ...rows, bias: layer.down.bias });
  expertSum(residual, out, weights, rows);
}
