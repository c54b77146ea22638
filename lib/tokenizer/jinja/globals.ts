/**
 * The functions that every chat template finds.
 *
 * @module
 */

import { JinjaError } from "./lexer.ts";
import { entriesOf } from "./methods.ts";
import { type Attributes, type Callable, keyOf, Namespace, numeric, text, truth, type Value } from "./values.ts";

/** What Jinja2's sandbox allows a range to have. */
const LONGEST_RANGE = 100_000;

function range(bounds: Value[]): Value {
  const numbers = bounds.map((bound) => {
    if (typeof bound === "number" || typeof bound === "boolean") return numeric(bound)!;
    throw new JinjaError("range needs whole numbers");
  });
  const [start, stop, step] = numbers.length === 1 ? [0, numbers[0], 1] : [numbers[0], numbers[1], numbers[2] ?? 1];
  if (step === 0) throw new JinjaError("range() arg 3 must not be zero");
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (length > LONGEST_RANGE) throw new JinjaError(`range of more than ${LONGEST_RANGE} numbers`);
  return Array.from({ length }, (_, i) => start + i * step);
}

function dict([first]: Value[], named: Map<string, Value>): Map<Value, Value> {
  return new Map([...entriesOf(first), ...named].map(([key, value]) => [keyOf(key), value]));
}

const namespace: Callable = (given, named) => {
  const made = new Namespace();
  for (const [key, value] of dict(given, named)) made.attributes.set(key, value);
  return made;
};

class Cycler implements Attributes {
  #at = 0;
  readonly #items: Value[];

  constructor(items: Value[]) {
    if (items.length === 0) throw new JinjaError("at least one item has to be provided");
    this.#items = items;
  }

  attribute(name: string): Value | undefined {
    if (name === "current") return this.#items[this.#at];
    if (name === "reset") return () => (this.#at = 0, null);
    if (name !== "next") return undefined;
    return () => {
      const item = this.#items[this.#at];
      this.#at = (this.#at + 1) % this.#items.length;
      return item;
    };
  }
}

function joiner([separator = ", "]: Value[]): Callable {
  let used = false;
  return () => {
    if (used) return separator;
    used = true;
    return "";
  };
}

const DAYS = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS = "January February March April May June July August September October November December".split(" ");

/** A time as `strftime` of the C locale writes it. */
export function strftime(time: Date, format: string): string {
  const two = (value: number): string => String(value).padStart(2, "0");
  const hour = time.getHours(), year = time.getFullYear();
  const dayOfYear = Math.round((Date.UTC(year, time.getMonth(), time.getDate()) - Date.UTC(year, 0, 1)) / 864e5) + 1;
  const values: Record<string, () => string> = {
    Y: () => String(year),
    y: () => two(year % 100),
    m: () => two(time.getMonth() + 1),
    d: () => two(time.getDate()),
    e: () => String(time.getDate()).padStart(2),
    j: () => String(dayOfYear).padStart(3, "0"),
    H: () => two(hour),
    I: () => two(hour % 12 || 12),
    M: () => two(time.getMinutes()),
    S: () => two(time.getSeconds()),
    f: () => String(time.getMilliseconds() * 1000).padStart(6, "0"),
    p: () => hour < 12 ? "AM" : "PM",
    A: () => DAYS[time.getDay()],
    a: () => DAYS[time.getDay()].slice(0, 3),
    B: () => MONTHS[time.getMonth()],
    b: () => MONTHS[time.getMonth()].slice(0, 3),
    h: () => MONTHS[time.getMonth()].slice(0, 3),
    w: () => String(time.getDay()),
    u: () => String(time.getDay() || 7),
    F: () => strftime(time, "%Y-%m-%d"),
    T: () => strftime(time, "%H:%M:%S"),
    R: () => strftime(time, "%H:%M"),
    D: () => strftime(time, "%m/%d/%y"),
    x: () => strftime(time, "%m/%d/%y"),
    X: () => strftime(time, "%H:%M:%S"),
    c: () => strftime(time, "%a %b %e %H:%M:%S %Y"),
    s: () => String(Math.floor(time.getTime() / 1000)),
    z: () => "",
    Z: () => "",
    n: () => "\n",
    t: () => "\t",
    "%": () => "%",
  };
  return format.replace(/%(-?)([a-zA-Z%])/g, (all, bare, code) => {
    const value = values[code]?.();
    return value === undefined ? all : bare ? value.replace(/^0+(?=\d)/, "") : value;
  });
}

/** All functions by name. */
export const GLOBALS: Readonly<Record<string, Callable>> = {
  range,
  dict,
  namespace,
  cycler: (items) => new Cycler(items),
  joiner,
  raise_exception: ([message]) => {
    throw new JinjaError(truth(message ?? null) ? text(message) : "the template refuses the messages");
  },
  strftime_now: ([format = ""]) => strftime(new Date(), text(format)),
};
