/**
 * The recipes of the ablation, in the order of its table.
 *
 * @module
 */

import type { Recipe } from "../mod.ts";

/** One recipe at one rate. */
export interface AblationRow {
  /** Unique; begins with the nominal bits. */
  readonly name: string;
  /** Format of the keys. */
  readonly keys: string;
  /** Format of the values. */
  readonly values: string;
  /** How the codebooks are trained. */
  readonly recipe?: Recipe;
  /** The Gaussian codebook in place of a trained one. */
  readonly dataFree?: boolean;
  /** First positions kept exactly, where not 4. */
  readonly sinks?: number;
  /** Newest positions kept exactly, where not 128. */
  readonly window?: number;
  /** The kind of calibration text, where not the first. */
  readonly calibration?: string;
  /** Formats chosen a layer and side under a mean rate of the codes. */
  readonly budget?: {
    readonly bits: number;
    readonly choices: readonly string[];
    /** Choices of the keys, where not the same. */
    readonly keys?: readonly string[];
    readonly at?: string;
  };
}

/** The paper's, with what was found to help and costs no bits but those of the scale. */
const scaled: Recipe = { smooth: "fitted", valueHadamard: true, tokenScale: true, positions: 4096 };
const shared: Recipe = { ...scaled, shared: true };
const best: Recipe = { ...shared, feedback: "keys" };

/** Without scales a codebook serves one KV head, and values as they are have more for it to learn. */
const raw: Recipe = { smooth: "fitted", perHead: true, feedback: "keys", positions: 4096 };

const d4b8 = { keys: "d4b8", values: "d4b8" }, split = { keys: "d4b10", values: "d8b12" };
const d8b12 = { keys: "d8b12", values: "d8b12" }, d8b8 = { keys: "d8b8", values: "d8b8" };

/** Formats that a layer may have: all, and those that attention reads fastest. */
const every = ["d8b8", "d8b12", "d4b8", "d4b10", "d4b12", "d2b8"], fast = ["d8b8", "d4b8", "d4b10", "d2b8"];

/** All rows. */
export const ABLATION: readonly AblationRow[] = [
  // The paper's recipe at each rate, and its maths setting.
  { name: "4 vecinfer", keys: "d2b8", values: "d2b8", recipe: {} },
  { name: "3 vecinfer", keys: "d4b12", values: "d4b12", recipe: {} },
  { name: "2 vecinfer", ...d4b8, recipe: {} },
  { name: "2 vecinfer, maths split", ...split, recipe: {} },
  { name: "1.5 vecinfer", ...d8b12, recipe: {} },
  { name: "1.25 vecinfer", keys: "d8b12", values: "d8b8", recipe: {} },
  { name: "1 vecinfer", ...d8b8, recipe: {} },
  // Single changes to the paper's recipe at 2 bits.
  { name: "2 vecinfer, no sinks", ...d4b8, recipe: {}, sinks: 0 },
  { name: "2 vecinfer, 16 sinks", ...d4b8, recipe: {}, sinks: 16 },
  { name: "2 vecinfer, sinks in the calibration", ...d4b8, recipe: { skip: 0 } },
  { name: "2 vecinfer, keys raw", ...d4b8, recipe: { smooth: false, keyHadamard: false } },
  { name: "2 vecinfer, keys Hadamard alone", ...d4b8, recipe: { smooth: false } },
  { name: "2 vecinfer, keys smooth alone", ...d4b8, recipe: { keyHadamard: false } },
  { name: "2 vecinfer, fitted smooth", ...d4b8, recipe: { smooth: "fitted" } },
  { name: "2 vecinfer, values Hadamard", ...d4b8, recipe: { valueHadamard: true } },
  { name: "2 vecinfer, scale of keys", ...d4b8, recipe: { tokenScale: "keys" } },
  { name: "2 vecinfer, scale of values", ...d4b8, recipe: { tokenScale: "values" } },
  { name: "2 vecinfer, scales", ...d4b8, recipe: { tokenScale: true } },
  { name: "2 vecinfer, codebook a head", ...d4b8, recipe: { perHead: true } },
  { name: "2 vecinfer, feedback of keys", ...d4b8, recipe: { feedback: "keys" } },
  { name: "2 vecinfer, importance weights", ...d4b8, recipe: { importance: true } },
  { name: "2 vecinfer, spread over 4096 positions", ...d4b8, recipe: { positions: 4096 } },
  { name: "2 vecinfer, another seed", ...d4b8, recipe: { seed: 1 } },
  // Together, at 2 bits.
  { name: "2 scales, fitted, values Hadamard", ...d4b8, recipe: scaled },
  { name: "2 the same, codebook a head", ...d4b8, recipe: { ...scaled, perHead: true } },
  { name: "2 the same, shared codebook", ...d4b8, recipe: shared },
  { name: "2 shared, feedback of keys", ...d4b8, recipe: best },
  { name: "2 the same, spread over 8192 positions", ...d4b8, recipe: { ...best, positions: 8192 } },
  { name: "2 the same, positions of the windows", ...d4b8, recipe: { ...best, positions: 0 } },
  { name: "2 shared, feedback of keys, importance weights", ...d4b8, recipe: { ...best, importance: true } },
  { name: "2 shared, feedback of keys and values", ...d4b8, recipe: { ...best, feedback: true } },
  { name: "2 head, feedback of keys", ...d4b8, recipe: { ...scaled, perHead: true, feedback: "keys" } },
  { name: "2 split, shared", ...split, recipe: shared },
  { name: "2 split, feedback of keys", ...split, recipe: best },
  { name: "2 split, feedback, no scale of values", ...split, recipe: { ...best, tokenScale: "keys" } },
  { name: "2 layers at 1.85, no feedback", ...split, recipe: shared, budget: { bits: 1.85, choices: every } },
  { name: "2 layers at 1.85", ...split, recipe: best, budget: { bits: 1.85, choices: every } },
  {
    name: "2 layers at 1.85, feedback of both",
    ...split,
    recipe: { ...best, feedback: true },
    budget: { bits: 1.85, choices: every },
  },
  { name: "2 layers at 1.85, fast formats", ...split, recipe: best, budget: { bits: 1.85, choices: fast } },
  {
    name: "2 layers at 1.85, keys of fast formats",
    ...split,
    recipe: best,
    budget: { bits: 1.85, choices: every.filter((name) => name !== "d4b12"), keys: fast },
  },
  {
    name: "1.5 layers at 1.35, keys of fast formats",
    ...d8b12,
    recipe: best,
    budget: { bits: 1.35, choices: every.filter((name) => name !== "d4b12"), keys: fast },
  },
  {
    name: "2 layers at 1.85, without d4b12",
    ...split,
    recipe: best,
    budget: { bits: 1.85, choices: every.filter((name) => name !== "d4b12") },
  },
  {
    name: "2 layers at 1.85, codebooks a layer",
    ...split,
    recipe: { ...scaled, feedback: "keys" },
    budget: { bits: 1.8, choices: fast },
  },
  { name: "2 no scale, feedback of keys, values raw", ...d4b8, recipe: raw },
  { name: "2 layers at 1.95, no scale, values raw", ...split, recipe: raw, budget: { bits: 1.95, choices: fast } },
  { name: "2 layers at 1.76", ...split, recipe: best, budget: { bits: 1.76, choices: every } },
  // 1.5 bits, 1 bit, and above.
  { name: "1.5 shared", ...d8b12, recipe: shared },
  { name: "1.5 shared, feedback of keys", ...d8b12, recipe: best },
  { name: "1.5 layers at 1.35", ...d8b12, recipe: best, budget: { bits: 1.35, choices: every } },
  {
    name: "1.5 layers at 1.35, feedback of both",
    ...d8b12,
    recipe: { ...best, feedback: true },
    budget: { bits: 1.35, choices: every },
  },
  { name: "1 scaled, codebook a head", ...d8b8, recipe: { ...scaled, perHead: true } },
  {
    name: "1 no scale, feedback of keys",
    ...d8b8,
    recipe: { ...scaled, tokenScale: false, feedback: "keys", perHead: true },
  },
  {
    name: "1 scale of keys, feedback of keys",
    ...d8b8,
    recipe: { ...scaled, tokenScale: "keys", feedback: "keys", perHead: true },
  },
  { name: "1 scales, feedback of keys", ...d8b8, recipe: { ...scaled, feedback: "keys", perHead: true } },
  { name: "1 scales, feedback of both", ...d8b8, recipe: { ...scaled, feedback: true, perHead: true } },
  { name: "1 no scale, feedback of keys, values raw", ...d8b8, recipe: raw },
  { name: "1 layers at 1.1, no scale, values raw", ...d8b8, recipe: raw, budget: { bits: 1.1, choices: fast } },
  { name: "1 layers at 1.05", ...d8b8, recipe: best, budget: { bits: 1.05, choices: every } },
  { name: "1 layers at 1.15", ...d8b8, recipe: best, budget: { bits: 1.15, choices: every } },
  { name: "3 shared, feedback of keys", keys: "d4b12", values: "d4b12", recipe: best },
  { name: "3 layers at 2.85", keys: "d4b12", values: "d4b12", recipe: best, budget: { bits: 2.85, choices: every } },
  { name: "4 shared, feedback of keys", keys: "d2b8", values: "d2b8", recipe: best },
  // Data-free, at every rate.
  { name: "4 data-free", keys: "d2b8", values: "d2b8", dataFree: true },
  { name: "3 data-free", keys: "d4b12", values: "d4b12", dataFree: true },
  { name: "2 data-free", ...d4b8, dataFree: true },
  { name: "2 data-free, split", ...split, dataFree: true },
  { name: "1.5 data-free", ...d8b12, dataFree: true },
  { name: "1 data-free", ...d8b8, dataFree: true },
  // Calibrated on another kind of text.
  ...["prose", "code"].flatMap((calibration) => [
    { name: `2 shared, feedback of keys, calibrated on ${calibration}`, ...d4b8, recipe: best, calibration },
    { name: `2 vecinfer, calibrated on ${calibration}`, ...d4b8, recipe: {}, calibration },
    {
      name: `2 layers at 1.85, calibrated on ${calibration}`,
      ...split,
      recipe: best,
      calibration,
      budget: { bits: 1.85, choices: every },
    },
    {
      name: `1.5 layers at 1.35, calibrated on ${calibration}`,
      ...d8b12,
      recipe: best,
      calibration,
      budget: { bits: 1.35, choices: every },
    },
    { name: `1 vecinfer, calibrated on ${calibration}`, ...d8b8, recipe: {}, calibration },
    {
      name: `1 layers at 1.15, calibrated on ${calibration}`,
      ...d8b8,
      recipe: best,
      calibration,
      budget: { bits: 1.15, choices: every },
    },
  ]),
];
