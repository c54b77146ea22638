/**
 * The part of `@std/assert` that the tests use, over node:assert. The import maps resolve `@std/assert` to this file, so
 * that the tests run where JSR can't be reached.
 *
 * @module
 */
import nodeAssert from "node:assert/strict";

// The types of node:assert tell a message from none apart, so an optional message is passed as if there were none.

// deno-lint-ignore no-explicit-any
type ErrorClass<E extends Error> = abstract new (...args: any[]) => E;

/** The assertion failed. */
export const AssertionError: typeof nodeAssert.AssertionError = nodeAssert.AssertionError;

/** Requires a truthy value. */
export function assert(value: unknown, message = "expected a truthy value"): asserts value {
  nodeAssert.ok(value, message);
}

/** Requires a falsy value. */
export function assertFalse(value: unknown, message = "expected a falsy value"): void {
  nodeAssert.ok(!value, message);
}

/** Requires deep equality. */
export function assertEquals<T>(actual: T, expected: T, message?: string): void {
  nodeAssert.deepStrictEqual(actual, expected, message as undefined);
}

/** Requires that two values are not deeply equal. */
export function assertNotEquals<T>(actual: T, expected: T, message?: string): void {
  nodeAssert.notDeepStrictEqual(actual, expected, message as undefined);
}

/** Requires identity. */
export function assertStrictEquals<T>(actual: unknown, expected: T, message?: string): asserts actual is T {
  nodeAssert.strictEqual(actual, expected, message as undefined);
}

/** Requires that something is there. */
export function assertExists<T>(actual: T, message = "expected a value"): asserts actual is NonNullable<T> {
  nodeAssert.ok(actual !== undefined && actual !== null, message);
}

/** Requires an instance of a class. */
export function assertInstanceOf<T extends Error>(
  actual: unknown,
  expected: ErrorClass<T>,
  message?: string,
): asserts actual is T {
  nodeAssert.ok(actual instanceof expected, message ?? `expected a ${expected.name}, found ${actual}`);
}

/** Requires a difference of at most `tolerance`, by default 1e-7 of the expected value. */
export function assertAlmostEquals(actual: number, expected: number, tolerance?: number, message?: string): void {
  if (Object.is(actual, expected)) return;
  const allowed = tolerance ?? (Number.isFinite(expected) ? Math.abs(expected * 1e-7) : 1e-7);
  const difference = Math.abs(expected - actual);
  nodeAssert.ok(difference <= allowed, message ?? `expected ${expected} within ${allowed}, found ${actual}`);
}

/** Requires `actual` > `expected`. */
export function assertGreater<T>(actual: T, expected: T, message?: string): void {
  nodeAssert.ok(actual > expected, message ?? `expected ${actual} > ${expected}`);
}

/** Requires `actual` >= `expected`. */
export function assertGreaterOrEqual<T>(actual: T, expected: T, message?: string): void {
  nodeAssert.ok(actual >= expected, message ?? `expected ${actual} >= ${expected}`);
}

/** Requires `actual` < `expected`. */
export function assertLess<T>(actual: T, expected: T, message?: string): void {
  nodeAssert.ok(actual < expected, message ?? `expected ${actual} < ${expected}`);
}

/** Requires `actual` <= `expected`. */
export function assertLessOrEqual<T>(actual: T, expected: T, message?: string): void {
  nodeAssert.ok(actual <= expected, message ?? `expected ${actual} <= ${expected}`);
}

/** Requires a part of a text. */
export function assertStringIncludes(actual: string, expected: string, message?: string): void {
  nodeAssert.ok(actual.includes(expected), message ?? `expected "${expected}" in:\n${actual}`);
}

/** Requires that a text matches. */
export function assertMatch(actual: string, expected: RegExp, message?: string): void {
  nodeAssert.match(actual, expected, message as undefined);
}

/** Requires that a text does not match. */
export function assertNotMatch(actual: string, expected: RegExp, message?: string): void {
  nodeAssert.doesNotMatch(actual, expected, message as undefined);
}

/** Requires the given items in an array, in any order. */
export function assertArrayIncludes<T>(actual: ArrayLike<T>, expected: ArrayLike<T>, message?: string): void {
  for (const item of Array.from(expected)) {
    const found = Array.from(actual).some((other) => {
      try {
        nodeAssert.deepStrictEqual(other, item);
        return true;
      } catch {
        return false;
      }
    });
    nodeAssert.ok(found, message ?? `expected ${JSON.stringify(item)} in ${JSON.stringify(actual)}`);
  }
}

/** Requires deep equality in the properties of `expected`. */
export function assertObjectMatch(actual: object, expected: object, message?: string): void {
  for (const [key, value] of Object.entries(expected)) {
    const own = (actual as Record<string, unknown>)[key];
    const nested = typeof value === "object" && value !== null && !Array.isArray(value);
    if (nested && typeof own === "object" && own !== null) assertObjectMatch(own, value, message);
    else nodeAssert.deepStrictEqual(own, value, message ?? `property ${key}`);
  }
}

/** Fails. */
export function fail(message = "failed"): never {
  nodeAssert.fail(message);
}

/** For code that must not be reached. */
export function unreachable(message = "reached what must not be reached"): never {
  nodeAssert.fail(message);
}

function checkError<E extends Error>(error: unknown, type?: ErrorClass<E>, part?: string, message?: string): E {
  nodeAssert.ok(error instanceof Error, message ?? `expected an Error to be thrown, found ${error}`);
  if (type !== undefined && !(error instanceof type)) {
    nodeAssert.fail(message ?? `expected a ${type.name}, found ${error.stack}`);
  }
  if (part !== undefined) assertStringIncludes(error.message, part, message);
  return error as E;
}

/** Requires that a function throws, e.g. an error of a class with a part of a message. Returns what is thrown. */
export function assertThrows<E extends Error = Error>(
  call: () => unknown,
  type?: ErrorClass<E>,
  part?: string,
  message?: string,
): E {
  let thrown: unknown;
  try {
    call();
  } catch (error) {
    thrown = error;
    return checkError(thrown, type, part, message);
  }
  nodeAssert.fail(message ?? "expected the function to throw");
}

/** Requires that a promise is rejected, e.g. with an error of a class with a part of a message. Returns the reason. */
export async function assertRejects<E extends Error = Error>(
  call: () => PromiseLike<unknown>,
  type?: ErrorClass<E>,
  part?: string,
  message?: string,
): Promise<E> {
  try {
    await call();
  } catch (error) {
    return checkError(error, type, part, message);
  }
  nodeAssert.fail(message ?? "expected the promise to be rejected");
}
