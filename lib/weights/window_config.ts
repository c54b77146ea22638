/**
 * How `config.json` says which layers have a sliding window.
 *
 * @module
 */

import type { Fields } from "./fields.ts";

/** The windows of an architecture. */
export interface WindowConfig {
  /** Whether layers with a window rotate in a way of their own, so that a window as long as the context matters too. */
  readonly rope?: true;
  /** Whether there are any only where `use_sliding_window` is true. */
  readonly switched?: true;
  /** `sliding_window` of a file without it. Absent: none. */
  readonly size?: number;
  /** Whether a layer has one, where `layer_types` does not say. Absent: all have, or none, and `layer_types` may not say otherwise. */
  readonly layer?: (config: Fields, layer: number, layers: number) => boolean;
}

const names = ["full_attention", "sliding_attention"];

/**
 * The window of each of `layers` layers, 0 for none; undefined where no layer has one. A window as long as the longest context is none,
 * but for layers that rotate in a way of their own. Throws {@link WeightsError}.
 */
export function readWindows(
  config: Fields,
  window: WindowConfig | undefined,
  layers: number,
): number[] | undefined {
  const types = readTypes(config, layers), listed = types?.includes("sliding_attention") === true;
  if (window === undefined) {
    if (listed) throw config.wrong("layer_types", '"full_attention" alone, as this architecture has no windows');
    return undefined;
  }
  const key = "sliding_window", use = "use_sliding_window";
  const size = config.has(key) ? config.optionalCount(key) : window.size, on = !window.switched || config.flag(use);
  if (!on) {
    if (listed) throw config.wrong(use, "true, as layer_types has layers with a window");
    return undefined;
  }
  const { layer: has } = window, all = Array.from({ length: layers }, (_, layer) => layer);
  if (size === undefined) {
    if (!window.switched && !listed && has === undefined) return undefined;
    const because = listed ? "layer_types has layers with one" : window.switched ? `${use} is true` : "layers have one";
    throw config.wrong(key, `a whole number >= 1, as ${because}`);
  }
  if (types && has === undefined && types.includes("full_attention")) {
    throw config.wrong("layer_types", `"sliding_attention" alone, as ${key} is ${size}`);
  }
  const windows = all.map((layer) =>
    (types ? types[layer] === "sliding_attention" : has?.(config, layer, layers) ?? true) ? size : 0
  );
  if (windows.every((each) => each === 0)) return undefined;
  return size < config.count("max_position_embeddings") || window.rope ? windows : undefined;
}

function readTypes(config: Fields, layers: number): string[] | undefined {
  const key = "layer_types", expected = `${names.map((name) => `"${name}"`).join(" or ")} for each of ${layers} layers`;
  if (config.value(key) === undefined) return undefined;
  const types = config.list(key, expected, (type) => names.includes(type as string)) as string[];
  if (types.length !== layers) throw config.wrong(key, `a list of ${expected}`);
  return types;
}
