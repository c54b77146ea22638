/**
 * Numbers within bounds and of multiples as automata over their digits. All is exact in decimal.
 *
 * @module
 */

import { type Automaton, type AutomatonState, complement, intersection, trim } from "./automaton.ts";
import { type Budget, SchemaError } from "./budget.ts";
import { pattern } from "./pattern.ts";

/** Digits of a number at most, before and after the point together: as many as a double tells apart. */
export const DIGITS = 15;

/** What a number has to be. */
export interface NumberRange {
  /** Written without a point. */
  readonly integer: boolean;
  /** Not whole. */
  readonly fractional?: boolean;
  readonly low?: number;
  /** `low` itself is not in. */
  readonly aboveLow?: boolean;
  readonly high?: number;
  /** `high` itself is not in. */
  readonly belowHigh?: boolean;
  readonly multiples: readonly number[];
  /** Values that are not in. */
  readonly excluded: readonly number[];
}

/** A number without its sign as digits before and after the point, without zeros that say nothing but for a lone "0". */
interface Decimal {
  readonly whole: string;
  readonly fraction: string;
}

/** The shortest decimal that is this double. */
function decimal(value: number): Decimal {
  const [, digits, fraction = "", exponent = "0"] = /^(\d+)(?:\.(\d+))?(?:e([+-]\d+))?$/.exec(String(Math.abs(value)))!;
  const point = digits.length + Number(exponent), all = digits + fraction;
  const padded = "0".repeat(Math.max(0, 1 - point)) + all + "0".repeat(Math.max(0, point - all.length));
  const at = Math.max(1, point);
  return { whole: padded.slice(0, at).replace(/^0+(?=\d)/, ""), fraction: padded.slice(at).replace(/0+$/, "") };
}

/** Whether a value is a multiple of another, in decimal. */
export function isMultiple(value: number, of: number): boolean {
  if (of === 0 || !Number.isFinite(value)) return false;
  const a = decimal(value), b = decimal(of), places = Math.max(a.fraction.length, b.fraction.length);
  const scaled = ({ whole, fraction }: Decimal) => BigInt(whole + fraction.padEnd(places, "0"));
  return scaled(a) % scaled(b) === 0n;
}

/** How digits compare with a bound: -1 below, 0 equal so far, 1 above. Before the point only those of one length compare. */
type Comparison = -1 | 0 | 1;

/** What is known of a number whose first digits are read. */
interface Reading {
  /** Digits before the point, and after it; a zero before the point is one digit. */
  readonly whole: number;
  readonly fraction: number;
  readonly point: boolean;
  readonly zero: boolean;
  readonly low: Comparison;
  readonly high: Comparison;
  /** What {@link Multiple} says of the digits so far. */
  readonly rest: number;
}

/**
 * Multiples of `modulus` times 10^`zeros`, counted in units of 10^-`places`. Of the digits so far, the zeros at the end are counted as
 * far as they matter; of what is before these, the rest by the modulus is kept.
 */
class Multiple {
  readonly places: number;
  readonly #modulus: number;
  readonly #zeros: number;

  constructor(modulus: number, zeros: number, places: number) {
    this.#modulus = modulus;
    this.#zeros = zeros;
    this.places = places;
  }

  /** Of no digits, or of zero. */
  get start(): number {
    return this.#zeros;
  }

  /** With one more digit. */
  next(state: number, digit: number): number {
    const span = this.#zeros + 1, zeros = state % span, rest = Math.floor(state / span);
    if (digit === 0 && zeros < this.#zeros) return state + 1;
    if (digit === 0) return rest * 10 % this.#modulus * span + zeros;
    let before = rest;
    for (let i = 0; i <= zeros; i++) before = before * 10 % this.#modulus;
    return (before + digit) % this.#modulus * span;
  }

  /** Whether it is a multiple when so many zeros follow. */
  is(state: number, more: number): boolean {
    const span = this.#zeros + 1, spare = state % span + more - this.#zeros;
    let rest = Math.floor(state / span);
    for (let i = 0; i < spare; i++) rest = rest * 10 % this.#modulus;
    return spare >= 0 && rest === 0;
  }
}

/** Numbers without a sign from `low` to `high`, each with whether it is in itself. */
class Magnitudes {
  readonly states: { ends: boolean; arcs: { set: number[]; to: number }[] }[] = [];
  readonly #numbers = new Map<number, number>();
  readonly #open: Reading[] = [];
  readonly #integer: boolean;
  readonly #low: Decimal | undefined;
  readonly #lowIn: boolean;
  readonly #high: Decimal | undefined;
  readonly #highIn: boolean;
  readonly #multiple: Multiple | undefined;

  constructor(
    integer: boolean,
    [low, lowIn]: readonly [number, boolean],
    [high, highIn]: readonly [number, boolean],
    multiple: Multiple | undefined,
    budget: Budget,
  ) {
    this.#integer = integer;
    // Nothing is below zero.
    this.#low = low === 0 && lowIn ? undefined : decimal(low);
    this.#lowIn = lowIn;
    this.#high = high === Infinity ? undefined : decimal(high);
    this.#highIn = highIn;
    this.#multiple = multiple;
    const start = {
      whole: 0,
      fraction: 0,
      point: false,
      zero: false,
      low: this.#low ? 0 as const : 1 as const,
      high: this.#high ? 0 as const : -1 as const,
      rest: multiple?.start ?? 0,
    };
    this.#enter(start);
    for (const reading of this.#open) {
      budget.spend(20);
      this.states.push({ ends: this.#ends(reading), arcs: this.#arcs(reading) });
    }
  }

  #enter(reading: Reading): number {
    const { whole, fraction, point, zero, low, high, rest } = reading;
    // Once both bounds are decided, only the digits that are left matter.
    const decided = fraction > 0 && low !== 0 && high !== 0 && !this.#multiple;
    const places = decided ? [whole + fraction, 1, 1, 0] : [whole, fraction, Number(point), Number(zero)];
    let key = rest;
    for (const place of [...places, low + 1, high + 1]) key = key * 16 + place;
    let number = this.#numbers.get(key);
    if (number === undefined) {
      this.#numbers.set(key, number = this.#numbers.size);
      this.#open.push(reading);
    }
    return number;
  }

  #arcs(reading: Reading): { set: number[]; to: number }[] {
    const { whole, fraction, point, zero } = reading, targets = new Map<number, number[]>();
    if (whole + fraction < DIGITS && !zero && !(this.#multiple && point && fraction >= this.#multiple.places)) {
      for (let digit = 0; digit < 10; digit++) {
        const to = this.#enter(this.#digit(reading, digit)), set = targets.get(to);
        if (set && set[set.length - 1] === 0x2f + digit) set[set.length - 1]++;
        else if (set) set.push(0x30 + digit, 0x30 + digit);
        else targets.set(to, [0x30 + digit, 0x30 + digit]);
      }
    }
    const arcs = Array.from(targets, ([to, set]) => ({ set, to }));
    if (!this.#integer && !point && whole > 0 && whole < DIGITS) {
      arcs.push({ set: [0x2e, 0x2e], to: this.#enter(this.#pointed(reading)) });
    }
    return arcs;
  }

  #digit(reading: Reading, digit: number): Reading {
    const { whole, fraction, point } = reading;
    const rest = this.#multiple ? this.#multiple.next(reading.rest, digit) : 0;
    const compare = (so: Comparison, bound: Decimal | undefined): Comparison => {
      if (so !== 0 || !bound) return so;
      const other = Number((point ? bound.fraction[fraction] : bound.whole[whole]) ?? "0");
      return digit < other ? -1 : digit > other ? 1 : 0;
    };
    const next = { low: compare(reading.low, this.#low), high: compare(reading.high, this.#high), rest };
    return point
      ? { ...reading, ...next, fraction: fraction + 1 }
      : { ...reading, ...next, whole: whole + 1, zero: whole === 0 && digit === 0 };
  }

  /** The comparison once the digits before the point are complete. */
  #compared(so: Comparison, { whole, point }: Reading, bound: Decimal | undefined): Comparison {
    if (!bound) return so;
    if (point || whole === bound.whole.length) return so;
    return whole < bound.whole.length ? -1 : 1;
  }

  #pointed(reading: Reading): Reading {
    const low = this.#compared(reading.low, reading, this.#low),
      high = this.#compared(reading.high, reading, this.#high);
    return { ...reading, point: true, zero: false, low, high };
  }

  #ends(reading: Reading): boolean {
    const { whole, fraction, point } = reading;
    if (whole === 0 || (point && fraction === 0)) return false;
    const more = (this.#multiple?.places ?? 0) - fraction;
    if (this.#multiple && (more < 0 || !this.#multiple.is(reading.rest, more))) return false;
    const final = (so: Comparison, bound: Decimal | undefined): Comparison => {
      const compared = this.#compared(so, reading, bound);
      return compared === 0 && bound && bound.fraction.length > fraction ? -1 : compared;
    };
    const low = final(reading.low, this.#low), high = final(reading.high, this.#high);
    return (low > 0 || (low === 0 && this.#lowIn)) && (high < 0 || (high === 0 && this.#highIn));
  }
}

/** Largest multiple without the zeros at its end and without its point: each rest is a state. */
const MOST_MODULUS = 1000;

/** What is a multiple of all. */
function common(values: readonly number[]): Multiple | undefined {
  if (values.length === 0) return undefined;
  const decimals = values.map(decimal), places = Math.max(...decimals.map(({ fraction }) => fraction.length));
  const modulus = decimals.map(({ whole, fraction }) => BigInt(whole + fraction.padEnd(places, "0"))).reduce((a, b) => {
    let [x, y] = [a, b];
    while (y > 0n) [x, y] = [y, x % y];
    return a / x * b;
  });
  const digits = String(modulus), plain = digits.replace(/0+$/, "");
  if (Number(plain) > MOST_MODULUS) {
    throw new SchemaError(`"multipleOf" ${values.join()} is not supported: its digits are above ${MOST_MODULUS}`);
  }
  return new Multiple(Number(plain), digits.length - plain.length, places);
}

const known = new Map<string, Automaton>();

/** The numbers of a range, each as digits without an exponent, at most {@link DIGITS} of them. */
export function numbers(range: NumberRange, budget: Budget): Automaton {
  const key = JSON.stringify(range), made = known.get(key);
  if (made) return made;
  const { integer, fractional, low = -Infinity, high = Infinity, aboveLow = false, belowHigh = false } = range;
  const multiple = common(range.multiples);
  const parts: AutomatonState[] = [{ ends: false, arcs: [] }];
  const attach = (states: AutomatonState[], sign: boolean): void => {
    const shift = parts.length, first = [...parts[0].arcs];
    const moved = states.map(({ ends, arcs }) => ({
      ends,
      arcs: arcs.map(({ set, to }) => ({ set, to: to + shift })),
    }));
    parts.push(...moved);
    if (sign) first.push({ set: [0x2d, 0x2d], to: shift });
    else first.push(...moved[0].arcs);
    parts[0] = { ends: false, arcs: first };
  };
  if (high >= 0) {
    const from = low < 0 ? [0, true] as const : [low, !aboveLow] as const;
    attach(new Magnitudes(integer, from, [high, !belowHigh], multiple, budget).states, false);
  }
  // There is no "-0".
  if (low < 0) {
    const from = high >= 0 ? [0, false] as const : [-high, !belowHigh] as const;
    attach(new Magnitudes(integer, from, [-low, !aboveLow], multiple, budget).states, true);
  }
  let automaton = trim(parts);
  if (fractional) automaton = intersection(automaton, pattern("\\.\\d*[1-9]\\d*$", budget), budget);
  for (const value of range.excluded) {
    const { whole, fraction } = decimal(value), sign = value < 0 ? "-" : "";
    const same = `^${sign}${whole}${fraction ? `\\.${fraction}0*` : "(?:\\.0+)?"}$`;
    automaton = intersection(automaton, complement(pattern(same, budget)), budget);
  }
  if (known.size >= 200) known.clear();
  known.set(key, automaton);
  return automaton;
}
