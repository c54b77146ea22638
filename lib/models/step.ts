/**
 * The memory of a decode step.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import { type ExpertRows, layerRows, type RowSizes } from "./rows.ts";

/**
 * Tokens of one sequence that pass through the model at once where all are known; the ring of a quantized cache allows as many more than
 * its window. The CUDA library multiplies f32 activations in up to 8 rows and rounds those of more to bf16, which would add some 1e-4 to
 * every KL: a thirtieth of vq4's.
 */
const STEP_ROWS = { cpu: 64, cuda: 8 };

/** Rows of a step that all caches take. */
export function stepRows(device: Device, caches: readonly { readonly stepTokens: number }[]): number {
  return Math.min(STEP_ROWS[device.name === "cpu" ? "cpu" : "cuda"], ...caches.map((cache) => cache.stepTokens));
}

/** Called once a layer is done. Its attention is in `step.attention`, its queries, keys (rotated) and values in `step.qkv`. */
export type StepObserver = (layer: number) => void;

/** Preallocated memory of a model's `forward` for up to `rows` rows; addresses stay fixed. */
export class Step implements Disposable {
  /** Rows at most. */
  readonly rows: number;
  /** Token ids, i32 [rows]. */
  readonly ids: Tensor;
  /** Slots of the rows' sequences, i32 [rows]. */
  readonly slots: Tensor;
  /** Positions, i32 [rows]; below 0 for padding. */
  readonly positions: Tensor;
  /** Logits, f32 [rows, vocabulary]. */
  readonly logits: Tensor;
  /** @internal Residual stream, f32 [rows, hidden]. */
  readonly residual: Tensor;
  /** @internal Queries, keys and values of a layer, f32 [rows, (heads + 2 kvHeads) * headDim]. */
  readonly qkv: Tensor;
  /** @internal A view of qkv. */
  readonly keys: Tensor;
  /** @internal A view of qkv. */
  readonly values: Tensor;
  /** @internal Output of attention, f32 [rows, heads * headDim]. */
  readonly attention: Tensor;
  /** @internal Inner channels of the feed-forward part, f32 [rows, intermediate]. */
  readonly gated: Tensor;
  /** @internal Gate and up, where the gate is a call of its own. */
  readonly gateUp: Tensor;
  /** @internal A row beside the residual stream, f32 [rows, hidden], where the model needs it. */
  readonly beside: Tensor;
  /** @internal Memory for experts, where the model has any. */
  readonly experts: ExpertRows | null;
  readonly #owned: DisposableStack = new DisposableStack();

  /** Allocates memory for `rows` rows of a model of these sizes. */
  constructor(device: Device, sizes: RowSizes, rows: number) {
    const { queries: q, keys: kv } = sizes;
    const make = (dtype: "f32" | "bf16" | "i32", ...shape: number[]): Tensor =>
      this.#owned.use(Tensor.zeros(device, dtype, shape));
    this.rows = rows;
    try {
      this.ids = make("i32", rows);
      this.slots = make("i32", rows);
      this.positions = make("i32", rows);
      this.logits = make("f32", rows, sizes.vocabulary);
      this.residual = make("f32", rows, sizes.hidden);
      this.qkv = make("f32", rows, q + 2 * kv);
      const { attention, gated, gateUp, beside, experts } = layerRows(make, sizes, rows);
      this.attention = attention;
      this.gated = gated;
      this.gateUp = gateUp;
      this.beside = beside;
      this.experts = experts;
    } catch (error) {
      this.#owned.dispose();
      throw error;
    }
    this.keys = this.qkv.columns(q, kv);
    this.values = this.qkv.columns(q + kv, kv);
  }

  /** Frees the memory. */
  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}
