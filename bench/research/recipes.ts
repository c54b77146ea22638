/**
 * The recipes of the ablation, in the order of its table.
 *
 * @module
 */

import type { Recipe } from "../../lib/calibration/mod.ts";
import type { Coder } from "./coders.ts";

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
  /** A coder in place of the formats. */
  readonly coder?: Coder;
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
  };
}

/** What `recipeOf("vecinfer+")` is. */
const plus: Recipe = { fitted: true, importance: true, perHead: true };

/** What other systems and simulations found to help, without fitted transforms. */
const scaled: Recipe = { tokenScale: true, perHead: true, importance: true };

const d4b8 = { keys: "d4b8", values: "d4b8" }, split = { keys: "d4b10", values: "d8b12" };
const d8b12 = { keys: "d8b12", values: "d8b12" }, d8b8 = { keys: "d8b8", values: "d8b8" };
const d4b6 = { keys: "d4b6", values: "d4b6" }, uneven = { keys: "d4b10", values: "d4b6" };

/** From the paper's recipe to `vecinfer+`, each at the paper's format of three rates: single changes first, then together. */
const STEPS: readonly Pick<AblationRow, "name" | "recipe" | "sinks">[] = [
  { name: "vecinfer", recipe: {} },
  { name: "vecinfer, no sinks", recipe: {}, sinks: 0 },
  { name: "vecinfer, keys Hadamard alone", recipe: { smooth: false } },
  { name: "vecinfer, scales", recipe: { tokenScale: true } },
  { name: "vecinfer, codebook a head", recipe: { perHead: true } },
  { name: "vecinfer, importance weights", recipe: { importance: true } },
  { name: "vecinfer, fitted keys", recipe: { fitted: "keys" } },
  { name: "scales, codebook a head, importance", recipe: scaled },
  { name: "fitted", recipe: { fitted: true } },
  { name: "fitted, codebook a head", recipe: { fitted: true, perHead: true } },
  { name: "fitted, codebook a head, importance", recipe: plus },
  { name: "the same, scales", recipe: { ...plus, tokenScale: true } },
];

/** Formats that a layer may have, as in `lib/calibration/calibrate.ts`. */
const fast = ["d8b8", "d4b8", "d4b10", "d2b8"];

/** Layers under a mean rate. */
const layered = (bits: number, recipe: Recipe, choices = fast) => ({ ...d4b8, recipe, budget: { bits, choices } });

/** All rows. */
export const ABLATION: readonly AblationRow[] = [
  ...([["2", d4b8], ["1.5", d8b12], ["1", d8b8]] as const).flatMap(([bits, formats]) =>
    STEPS.map((step) => ({ ...step, ...formats, name: `${bits} ${step.name}` }))
  ),
  // More of the paper's recipe, and its maths setting.
  { name: "4 vecinfer", keys: "d2b8", values: "d2b8", recipe: {} },
  { name: "3 vecinfer", keys: "d4b12", values: "d4b12", recipe: {} },
  { name: "2 vecinfer, maths split", ...split, recipe: {} },
  { name: "1.25 vecinfer", keys: "d8b12", values: "d8b8", recipe: {} },
  { name: "2 vecinfer, fitted values", ...d4b8, recipe: { fitted: "values" } },
  { name: "2 vecinfer, values Hadamard", ...d4b8, recipe: { valueHadamard: true } },
  { name: "2 vecinfer, keys raw", ...d4b8, recipe: { smooth: false, keyHadamard: false } },
  // Uneven formats, of keys and values and of layers.
  { name: "2 scales, codebook a head, importance, Hadamard alone", ...d4b8, recipe: { ...scaled, smooth: false } },
  { name: "2 scales, codebook a head, importance, split", ...split, recipe: scaled },
  { name: "2 fitted, codebook a head, importance, another seed", ...d4b8, recipe: { ...plus, seed: 1 } },
  { name: "2 fitted, codebook a head, importance, d4b10 and d4b6", ...uneven, recipe: plus },
  { name: "1.5 fitted, codebook a head, importance, d4b6", ...d4b6, recipe: plus },
  { name: "4 fitted, codebook a head, importance", keys: "d2b8", values: "d2b8", recipe: plus },
  // Token scales take the rest of the bits.
  { name: "2 layers at 1.85, scales, without fitted", ...layered(1.85, { ...scaled, smooth: false }) },
  { name: "2 layers at 1.95, no importance", ...layered(1.95, { fitted: true, perHead: true }) },
  { name: "2 layers at 1.95", ...layered(1.95, plus) },
  { name: "2 layers at 1.95, d4b6 among the formats", ...layered(1.95, plus, [...fast, "d4b6"]) },
  { name: "2 layers at 1.95, formats of 12 bits too", ...layered(1.95, plus, [...fast, "d4b6", "d4b12", "d8b12"]) },
  { name: "1.5 layers at 1.45", ...layered(1.45, plus) },
  { name: "3 layers at 2.9", ...layered(2.9, plus) },
  // Coders without kernels. The books of a trellis take 0.12 bits at 64 channels and 32768 tokens: under formats a layer, codes have less.
  ...([["two stages", "residual", 1.95, 1.45], ["trellis", "trellis", 1.83, 1.33]] as const).flatMap((
    [title, coder, two, less],
  ) => [
    { name: `2 fitted, codebook a head, importance, ${title}`, ...d4b8, recipe: plus, coder },
    { name: `1.5 fitted, codebook a head, importance, d4b6, ${title}`, ...d4b6, recipe: plus, coder },
    { name: `1 fitted, codebook a head, importance, ${title}`, ...d8b8, recipe: plus, coder },
    { name: `2 layers at ${two}, ${title}`, ...layered(two, plus), coder },
    { name: `1.5 layers at ${less}, ${title}`, ...layered(less, plus), coder },
  ]),
  // Data-free, at every rate.
  { name: "4 data-free", keys: "d2b8", values: "d2b8", dataFree: true },
  { name: "3 data-free", keys: "d4b12", values: "d4b12", dataFree: true },
  { name: "2 data-free", ...d4b8, dataFree: true },
  { name: "2 data-free, split", ...split, dataFree: true },
  { name: "2 data-free, d4b10 and d4b6", ...uneven, dataFree: true },
  { name: "1.5 data-free", ...d8b12, dataFree: true },
  { name: "1.5 data-free, d4b8 and d8b8", keys: "d4b8", values: "d8b8", dataFree: true },
  { name: "1.25 data-free", keys: "d8b12", values: "d8b8", dataFree: true },
  { name: "1 data-free", ...d8b8, dataFree: true },
  // Calibrated on another kind of text.
  ...["prose", "code"].flatMap((calibration) => [
    { name: `2 vecinfer, calibrated on ${calibration}`, ...d4b8, recipe: {}, calibration },
    { name: `2 layers at 1.95, calibrated on ${calibration}`, ...layered(1.95, plus), calibration },
    { name: `1.5 layers at 1.45, calibrated on ${calibration}`, ...layered(1.45, plus), calibration },
    { name: `1 vecinfer, calibrated on ${calibration}`, ...d8b8, recipe: {}, calibration },
    { name: `1 fitted, calibrated on ${calibration}`, ...d8b8, recipe: plus, calibration },
  ]),
];
