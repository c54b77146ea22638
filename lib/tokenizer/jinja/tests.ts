/**
 * Jinja2's tests: what stands after `is`.
 * Source: https://jinja.palletsprojects.com/en/stable/templates/#builtin-tests
 *
 * @module
 */

import { JinjaError } from "./lexer.ts";
import { contains, equal, isFloat, Markup, numeric, order, plain, Undefined, type Value } from "./values.ts";

/** Whether a value passes; `given` is what the test was given besides. */
export type Test = (value: Value, given: Value[]) => boolean;

function integer(value: Value): number {
  const number = numeric(value);
  if (number === undefined) throw new JinjaError("odd, even and divisibleby need a number");
  return number;
}

const greater: Test = (value, [other]) => order(value, other, ">") > 0;
const atLeast: Test = (value, [other]) => order(value, other, ">=") >= 0;
const less: Test = (value, [other]) => order(value, other, "<") < 0;
const atMost: Test = (value, [other]) => order(value, other, "<=") <= 0;
const same: Test = (value, [other]) => equal(value, other);
const different: Test = (value, [other]) => !equal(value, other);

/** All tests by name. */
const TESTS: Readonly<Record<string, Test>> = {
  defined: (value) => !(value instanceof Undefined),
  undefined: (value) => value instanceof Undefined,
  none: (value) => value === null,
  boolean: (value) => typeof value === "boolean",
  true: (value) => value === true,
  false: (value) => value === false,
  string: (value) => typeof plain(value) === "string",
  mapping: (value) => value instanceof Map,
  number: (value) => numeric(value) !== undefined,
  integer: (value) => numeric(value) !== undefined && typeof value !== "boolean" && !isFloat(value),
  float: (value) => isFloat(value),
  iterable: (value) =>
    typeof value === "string" || Array.isArray(value) || value instanceof Map || value instanceof Undefined,
  sequence: (value) =>
    typeof value === "string" || Array.isArray(value) || value instanceof Map || value instanceof Undefined,
  callable: (value) => typeof value === "function",
  sameas: (value, [other]) => value === other,
  escaped: (value) => value instanceof Markup,
  in: (value, [container]) => contains(container, value),
  lower: (value) => typeof value === "string" && /\p{L}/u.test(value) && value === value.toLowerCase(),
  upper: (value) => typeof value === "string" && /\p{L}/u.test(value) && value === value.toUpperCase(),
  odd: (value) => Math.abs(integer(value) % 2) === 1,
  even: (value) => integer(value) % 2 === 0,
  divisibleby: (value, [by]) => integer(value) % integer(by) === 0,
  eq: same,
  equalto: same,
  "==": same,
  ne: different,
  "!=": different,
  gt: greater,
  greaterthan: greater,
  ">": greater,
  ge: atLeast,
  ">=": atLeast,
  lt: less,
  lessthan: less,
  "<": less,
  le: atMost,
  "<=": atMost,
};

/** The test of a name. Throws {@link JinjaError} where there is none. */
export function testOf(name: string): Test {
  if (!Object.hasOwn(TESTS, name)) throw new JinjaError(`no test named ${JSON.stringify(name)}`);
  return TESTS[name];
}
