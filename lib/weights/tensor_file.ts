/**
 * What the readers of the two formats have in common: tensors by name.
 *
 * @module
 */

/** What a file says about a tensor. */
export interface TensorInfo<Type extends string = string> {
  /** Name of its element type in the format: "BF16", "Q4_1". */
  readonly dtype: Type;
  /** Sizes of the dimensions, the last one contiguous; empty for a scalar. */
  readonly shape: readonly number[];
  /** Bytes of the whole tensor. */
  readonly byteLength: number;
}

/** The tensors of an open file, or of the shards of one model. All but `names` and `has` throw WeightsError. */
export interface TensorFile extends Disposable {
  /** The file, for messages. */
  readonly path: string;
  /** The tensors' names, in the order of the file. */
  readonly names: string[];
  /** Whether there is a tensor of that name. */
  has(name: string): boolean;
  /** Type, shape and size of a tensor. */
  info(name: string): TensorInfo;
  /** Fills `target` with the tensor's bytes from byte `offset` on. Throws RangeError where the tensor ends before the target. */
  readInto(name: string, offset: number, target: Uint8Array): void;
}
