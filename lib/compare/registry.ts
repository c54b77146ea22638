/**
 * The methods by name.
 *
 * @module
 */

import { clustering } from "./clustering.ts";
import type { Method } from "./method.ts";
import { calibrated, product } from "./product.ts";
import { kivi, ott } from "./scalar.ts";
import { turboquant } from "./turboquant.ts";

/** Makes a method from the settings behind its name; throws RangeError that names what it takes. */
type Factory = (settings: string) => Method;

const factories: Readonly<Record<string, Factory>> = {
  calibrated,
  "data-free": product("data-free"),
  vecinfer: product("vecinfer"),
  "vecinfer+": product("vecinfer+"),
  million: product("million"),
  cq: product("cq"),
  kivi,
  ott,
  turboquant,
  clustering,
};

/** The names that {@linkcode methodOf} knows, without settings. */
export const METHODS: readonly string[] = Object.keys(factories);

/** The method of a name with settings, such as `kivi` or `kivi:g32`. Throws RangeError that names what is unknown. */
export function methodOf(name: string): Method {
  const [base, ...settings] = name.split(":");
  if (!Object.hasOwn(factories, base)) {
    throw new RangeError(`method "${base}" is unknown; methods are ${METHODS.join(", ")}`);
  }
  return factories[base](settings.join(":"));
}
