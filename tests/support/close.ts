/** Comparison of arrays of numbers. @module */
import { AssertionError } from "node:assert";

/** What two arrays may differ by: |actual - expected| <= absolute + relative * |expected|. */
export interface Tolerance {
  /** Default 0. */
  absolute?: number;
  /** Default 0. */
  relative?: number;
}

/** Requires that arrays are close. Equal infinities and NaN at the same place are. */
export function assertAllClose(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: Tolerance = {},
  name = "values",
): void {
  const { absolute = 0, relative = 0 } = tolerance;
  if (actual.length !== expected.length) {
    throw new AssertionError({ message: `${name}: ${actual.length} values, expected ${expected.length}` });
  }
  let first = -1, failed = 0, maxAbsolute = 0, maxRelative = 0;
  for (let i = 0; i < actual.length; i++) {
    if (Object.is(actual[i], expected[i])) continue;
    const difference = Math.abs(actual[i] - expected[i]);
    if (difference > maxAbsolute) maxAbsolute = difference;
    if (expected[i] !== 0 && difference / Math.abs(expected[i]) > maxRelative) {
      maxRelative = difference / Math.abs(expected[i]);
    }
    if (difference <= absolute + relative * Math.abs(expected[i])) continue; // false for NaN
    failed++;
    if (first < 0) first = i;
  }
  if (failed === 0) return;
  throw new AssertionError({
    message: `${name}: ${failed} of ${actual.length} differ, first at ${first}: ${actual[first]}, expected ` +
      `${
        expected[first]
      }; max absolute ${maxAbsolute}, max relative ${maxRelative}; allowed ${absolute} + ${relative} x`,
    actual: actual[first],
    expected: expected[first],
  });
}
