/**
 * How prompts are cut, and the memory that they take on their way through the layers.
 *
 * @module
 */

import type { Device } from "../device.ts";
import { Tensor } from "../tensor.ts";
import type { Sequence } from "../cache/sequence.ts";
import { convert, rmsnorm } from "../ops/ops.ts";
import type { ModelConfig } from "../weights/model_config.ts";
import { type LayerRows, layerRows, type RowSizes } from "./rows.ts";

/** Called with one layer's keys (after RoPE) and values: f32 [tokens, 2, kvHeads, headDim]. */
export type KvObserver = (layer: number, keysAndValues: Tensor) => void;

/** Options of a model's `prefill`. */
export interface PrefillOptions {
  /** Called as layers are done. */
  onProgress?: (done: number, total: number) => void;
  /** Stops between chunks of rows. The sequence is then as its `abandon` leaves it. */
  signal?: AbortSignal;
  /** Sees keys and values before they are encoded. */
  observe?: KvObserver;
  /** Sees a layer's queries after RoPE, f32 [rows, heads, headDim], a chunk at a time. */
  observeQueries?: (layer: number, queries: Tensor) => void;
  /** Sees hidden states after the last norm, f32 [rows, hidden], a chunk at a time, once all layers are done. */
  observeHidden?: (hidden: Tensor) => void;
  /** Replaces parts of what the model's `prefillPlan` says. */
  plan?: Partial<PrefillPlan>;
}

/** A sequence to read tokens into. */
export interface PromptRead {
  /** Where they go. */
  readonly sequence: Sequence;
  /** Tokens; at least one. */
  readonly ids: ArrayLike<number>;
  /** The last token's logits, f32 [vocabulary], are written here; null: nowhere. */
  readonly logits: Tensor | null;
}

/** From so many rows on a product on CUDA gives a row the same bits whatever their number: see cuda/kernels/linear_large.cu. */
const WHOLE_SUM_ROWS = 256;

/**
 * Whether prompts of so many tokens get together, in one pass, what they get alone: where plans have the same types, and on a GPU
 * where each is one chunk of {@linkcode WHOLE_SUM_ROWS} rows or more, and all together are one.
 */
export function areAlike(device: Device, config: ModelConfig, lengths: readonly number[]): boolean {
  const tokens = lengths.reduce((sum, length) => sum + length, 0), together = prefillPlan(device, config, tokens);
  const alike = ({ kv, residual, activations }: PrefillPlan): boolean =>
    kv === together.kv && residual === together.residual && activations === together.activations;
  return lengths.every((length) => alike(prefillPlan(device, config, length))) &&
    (device.name === "cpu" || lengths.length === 1 ||
      (tokens <= together.rows && Math.min(...lengths) >= WHOLE_SUM_ROWS));
}

/** The sizes and types that a prompt passes through the layers with. */
export interface PrefillPlan {
  /** Tokens of a chunk: the activations of this many exist at a time. */
  readonly rows: number;
  /**
   * Type of the prompt's keys and values of one layer, [tokens, 2, kvHeads, headDim]. f16, for CUDA, is what its attention
   * multiplies; beyond ±65504 it holds these.
   */
  readonly kv: "f32" | "bf16" | "f16";
  /** Type of the residual stream between two layers, [tokens, hidden]; inside a layer it is f32. */
  readonly residual: "f32" | "bf16";
  /**
   * Type of what a layer's products take from its attention and its gate. In bf16, for CUDA, queries, keys and values are one product, and
   * keys and values f16; with "f32" for those, this is "f32" too.
   */
  readonly activations: "f32" | "bf16";
}

/** Bytes of residual stream that may be f32 on a GPU: 65536 tokens of 4096 channels. */
const RESIDUAL_BYTES = 2 ** 30;

/**
 * How a prompt of `tokens` tokens is read.
 *
 * On the CPU: chunks of 512 tokens, everything in f32. On a GPU keys and values of the layer are f16, which is what the
 * attention there multiplies, and activations bf16, which products round to anyway (prompts of up to 8 tokens are read as a decode
 * step is, in f32). The residual stream of all tokens is f32 up to 1 GiB of it and bf16 above, rounded once a layer.
 * Chunks have 4096 tokens beside an f32 residual; beside a bf16 one 2048, which take 2 % longer and less memory. So a prompt of
 * 196608 tokens through layers of 4096 channels, 8 KV heads of 128 and 14336 inner channels needs 1.61 GB (residual) + 0.81 GB
 * (keys, values) + 0.4 GB (chunk and scratch memory): below 3 GB beside weights and codes.
 */
export function prefillPlan(device: Device, config: ModelConfig, tokens: number): PrefillPlan {
  if (device.name === "cpu") return { rows: 512, kv: "f32", residual: "f32", activations: "f32" };
  const residual = tokens * config.hiddenSize * 4 <= RESIDUAL_BYTES ? "f32" : "bf16";
  const [kv, activations] = tokens > 8 ? ["f16", "bf16"] as const : ["f32", "f32"] as const;
  return { rows: residual === "f32" ? 4096 : 2048, kv, residual, activations };
}

/** Rows of all tokens of a prompt, kept as f32 or rounded to 16 bits, and worked on as f32 a chunk at a time. */
class PromptRows implements Disposable {
  /** [tokens, width]. */
  readonly all: Tensor;
  /** f32 [chunk, width], where the rows themselves are not f32. */
  readonly #chunk: Tensor | null;

  constructor(device: Device, dtype: "f32" | "bf16" | "f16", tokens: number, chunk: number, width: number) {
    this.all = Tensor.empty(device, dtype, [tokens, width]);
    this.#chunk = dtype === "f32" ? null : Tensor.empty(device, "f32", [chunk, width]);
  }

  /** Memory for `rows` rows from `first` on in f32; its contents are undefined. */
  at(first: number, rows: number): Tensor {
    return this.#chunk === null ? this.all.rows(first, rows) : this.#chunk.rows(0, rows);
  }

  /** Brings rows to the memory of `at`. */
  load(first: number, rows: number): void {
    if (this.#chunk !== null) convert(this.#chunk.rows(0, rows), this.all.rows(first, rows));
  }

  /** Keeps what was written to the memory of `at`. */
  store(first: number, rows: number): void {
    if (this.#chunk !== null) convert(this.all.rows(first, rows), this.#chunk.rows(0, rows));
  }

  [Symbol.dispose](): void {
    this.all[Symbol.dispose]();
    this.#chunk?.[Symbol.dispose]();
  }
}

/** A sequence that is read to: tokens behind `past` others, and its slot in the cache. */
export interface PromptPart {
  /** Tokens; at least one. */
  readonly ids: ArrayLike<number>;
  /** Tokens of the sequence before them. */
  readonly past: number;
  /** The sequence's slot. */
  readonly slot: number;
}

/** Tokens of a chunk that are of one sequence. */
export interface Span {
  /** The sequence's tokens. */
  readonly part: PromptPart;
  /** Keys of its tokens up to the last one here, a view of the prompt's. */
  readonly keys: Tensor;
  /** Values likewise. */
  readonly values: Tensor;
  /** Its first token here, of the part's. */
  readonly first: number;
  /** That token's row in the chunk. */
  readonly row: number;
  /** Tokens. */
  readonly rows: number;
}

/** Tokens of a prompt that pass through a layer together. Their f32 memory may be that of other chunks too. */
export interface Chunk extends LayerRows {
  /** The prompt. */
  readonly prompt: Prompt;
  /** What it has of each sequence: rows attend to their own sequence alone, and all else is of all rows together. */
  readonly spans: readonly Span[];
  /** Its first token here. */
  readonly first: number;
  /** Tokens. */
  readonly rows: number;
  /** Token ids, i32 [rows]. */
  readonly ids: Tensor;
  /** Positions, i32 [rows]. */
  readonly positions: Tensor;
  /** Slots, i32 [rows]. */
  readonly slots: Tensor;
  /** Residual stream, f32 [rows, hidden]: after `prompt.residual.load`, and kept by `store`. */
  readonly residual: Tensor;
  /** Keys and values of the layer, f32 [rows, 2, kvHeads, headDim]: after `prompt.kv.load`, and kept by `store`. */
  readonly kv: Tensor;
  /** A view of kv. */
  readonly keys: Tensor;
  /** A view of kv. */
  readonly values: Tensor;
  /** Products with queries', keys' and values' weights, where they are one; f32 [rows or more, (heads + 2 kvHeads) * headDim]. */
  readonly qkv: Tensor | null;
  /** Queries, f32 [rows or more, heads * headDim]; a view of qkv where there is one. */
  readonly queries: Tensor;
}

/** Memory of a prompt, or of several that are read together: of all tokens residual stream, keys and values of one layer; the rest a chunk. */
export class Prompt implements Disposable {
  /** Residual stream of all tokens, [tokens, hidden]. */
  readonly residual: PromptRows;
  /** Keys and values of all tokens in one layer, [tokens, 2, kvHeads, headDim]. */
  readonly kv: PromptRows;
  /** A view of kv. */
  readonly keys: Tensor;
  /** A view of kv. */
  readonly values: Tensor;
  /** Whether queries, keys and values are one product. */
  readonly joint: boolean;
  /** The prompt in parts, in order. */
  readonly chunks: readonly Chunk[];
  readonly #owned: DisposableStack = new DisposableStack();

  /** Allocates memory for the tokens of sequences, one behind the other. Throws RangeError for a plan of no rows. */
  constructor(device: Device, sizes: RowSizes, parts: readonly PromptPart[], plan: PrefillPlan) {
    const tokens = parts.reduce((sum, { ids }) => sum + ids.length, 0), chunk = Math.min(tokens, plan.rows);
    if (!Number.isInteger(chunk) || chunk < 1) {
      throw new RangeError(`prefill: rows is ${plan.rows}; at least 1 is needed`);
    }
    const { queries: q, keys: kv } = sizes;
    const keep = <T extends Disposable>(owned: T): T => this.#owned.use(owned);
    const activations = plan.kv === "f32" ? "f32" : plan.activations;
    this.joint = activations === "bf16";
    try {
      const ofTokens = (value: (part: PromptPart, i: number) => number) =>
        keep(Tensor.from(
          device,
          Int32Array.from(parts.flatMap((part) => Array.from({ length: part.ids.length }, (_, i) => value(part, i)))),
        ));
      const allIds = ofTokens(({ ids }, i) => ids[i]), allPositions = ofTokens(({ past }, i) => past + i);
      const allSlots = ofTokens(({ slot }) => slot);
      this.residual = keep(new PromptRows(device, plan.residual, tokens, chunk, sizes.hidden));
      this.kv = keep(new PromptRows(device, this.joint ? "f16" : plan.kv, tokens, chunk, 2 * kv));
      this.keys = this.kv.all.columns(0, kv);
      this.values = this.kv.all.columns(kv, kv);
      const make = (dtype: "f32" | "bf16" | "i32", ...shape: number[]) => keep(Tensor.empty(device, dtype, shape));
      const qkv = this.joint ? make("f32", chunk, q + 2 * kv) : null;
      const queries = qkv?.columns(0, q) ?? make("f32", chunk, q), own = layerRows(make, sizes, chunk, activations);
      this.chunks = Array.from({ length: Math.ceil(tokens / chunk) }, (_, i): Chunk => {
        const first = i * chunk, rows = Math.min(chunk, tokens - first), kvRows = this.kv.at(first, rows);
        return {
          prompt: this,
          spans: this.#spans(parts, first, rows),
          first,
          rows,
          ids: allIds.rows(first, rows),
          positions: allPositions.rows(first, rows),
          slots: allSlots.rows(first, rows),
          residual: this.residual.at(first, rows),
          kv: kvRows,
          keys: kvRows.columns(0, kv),
          values: kvRows.columns(kv, kv),
          qkv,
          queries,
          ...own,
        };
      });
    } catch (error) {
      this.#owned.dispose();
      throw error;
    }
  }

  /** What rows first .. first + rows - 1 have of each part. */
  #spans(parts: readonly PromptPart[], first: number, rows: number): Span[] {
    const spans: Span[] = [];
    let begin = 0; // row of the part's first token
    for (const part of parts) {
      const from = Math.max(first, begin), end = Math.min(first + rows, begin + part.ids.length);
      if (from < end) {
        const keys = this.keys.rows(begin, end - begin), values = this.values.rows(begin, end - begin);
        spans.push({ part, keys, values, first: from - begin, row: from - first, rows: end - from });
      }
      begin += part.ids.length;
    }
    return spans;
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
  }
}

/** Shows what the model's head would take of each token, a chunk at a time: `norm` is the weight of the last norm, f32 [hidden]. */
export function* hiddenStates(
  { chunks, residual }: Prompt,
  norm: Tensor,
  epsilon: number,
  observe: (hidden: Tensor) => void,
): Generator<void, void, void> {
  using normed = Tensor.empty(norm.device, "f32", [chunks[0].rows, norm.size]);
  for (const { first, rows, residual: of } of chunks) {
    const hidden = normed.rows(0, rows);
    residual.load(first, rows);
    rmsnorm(hidden, of, norm, epsilon, { rows });
    observe(hidden);
    yield;
  }
}
