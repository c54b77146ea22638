/**
 * The sizes of a model that matter to its cache.
 *
 * @module
 */

/** The sizes of a model that its cache depends on. */
export interface CacheShape {
  /** Layers, each with a cache of its own. */
  readonly layers: number;
  /** KV heads a layer. */
  readonly kvHeads: number;
  /** Channels a head. */
  readonly headDim: number;
  /** Sliding window of each layer, in tokens; 0 for one that sees all of a sequence. Absent: all do. */
  readonly windows?: readonly number[];
}
