/**
 * Which layers of a cache attention reads by a kernel of their formats' own.
 *
 * @module
 */

import type { DeviceInfo } from "../device.ts";
import type { CacheShape } from "./bytes.ts";
import { codebookCounts, layerFormat, type Scheme, SIDES, type SideScheme } from "./scheme.ts";
import type { Format } from "./format.ts";

/** A side's scheme and format. */
type Sides = { readonly [side in keyof Pick<Scheme, "keys" | "values">]: SideScheme & { readonly format: Format } };

/**
 * What runs in a device's any-pair kernel, which is several times slower than kernels for one pair of formats: how many layers of a
 * cache, and their formats. Undefined where no layer does.
 */
export function describeAttention({ attention }: DeviceInfo, shape: CacheShape, sides: Sides): string | undefined {
  if (attention === undefined) return undefined;
  const { layers, headDim } = shape, pairs = attention[headDim] ?? [];
  const slow = Array.from({ length: layers }, (_, layer) => {
    const formats = SIDES.map((side) => layerFormat(sides[side], sides[side].format, layer));
    const parts = SIDES.map((side, i) => codebookCounts(sides[side].codebooks, shape, formats[i]).parts);
    const pair = formats.map(({ name }) => name).join("+");
    const own = pairs.includes(pair) && parts.every((count) => count === 1);
    return own ? undefined : pair;
  }).filter((pair) => pair !== undefined);
  if (slow.length === 0) return undefined;
  return `any-pair kernel for ${slow.length} of ${layers} layers (${
    [...new Set(slow)].join(", ")
  }, ${headDim} channels a head)`;
}
