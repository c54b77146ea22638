/**
 * The schemes of the ablation, in the order of its table.
 *
 * @module
 */

import { type Format, FORMATS, type Scheme, SCHEMES, type SideScheme, type TransformKind } from "../../lib/ops/mod.ts";
import { LAYER_FORMATS, type TrainingOptions } from "../../lib/calibration/mod.ts";
import type { Coder } from "./coders.ts";

/** One scheme at one rate. */
export interface AblationRow {
  /** Unique; begins with the nominal bits. */
  readonly name: string;
  /** Format of the keys. */
  readonly keys: string;
  /** Format of the values. */
  readonly values: string;
  /** How both are coded; with `bits`, formats are chosen a layer and side. */
  readonly scheme: Scheme;
  /** Formats that layers choose from, where the scheme has `bits`. */
  readonly choices?: readonly Format[];
  /** How the codebooks are trained, where not as all others. */
  readonly training?: TrainingOptions;
  /** A coder in place of the formats. */
  readonly coder?: Coder;
  /** First positions kept exactly, where not 4. */
  readonly sinks?: number;
  /** Newest positions kept exactly, where not 128. */
  readonly window?: number;
  /** The kind of calibration text, where not the first. */
  readonly calibration?: string;
}

const paper = SCHEMES.vecinfer, plus = SCHEMES["vecinfer+"], dataFree = SCHEMES["data-free"];

/** A scheme with a change of both sides. */
function changed({ keys, values, ...rest }: Scheme, change: Partial<SideScheme>): Scheme {
  return { ...rest, keys: { ...keys, ...change }, values: { ...values, ...change } };
}

/** A scheme with another transform of the keys. */
function keyed(scheme: Scheme, transform: TransformKind): Scheme {
  return { ...scheme, keys: { ...scheme.keys, transform } };
}

/** A scheme with another transform of the values. */
function valued(scheme: Scheme, transform: TransformKind): Scheme {
  return { ...scheme, values: { ...scheme.values, transform } };
}

/** What other systems and simulations found to help, without fitted transforms. */
const scaled: Scheme = { ...changed(paper, { tokenScale: true, codebooks: "head" }), importance: true };

const fitted = changed(paper, { transform: "fitted" }), fittedHeads = changed(fitted, { codebooks: "head" });

const d4b8 = { keys: "d4b8", values: "d4b8" }, split = { keys: "d4b10", values: "d8b12" };
const d8b12 = { keys: "d8b12", values: "d8b12" }, d8b8 = { keys: "d8b8", values: "d8b8" };
const d4b6 = { keys: "d4b6", values: "d4b6" }, uneven = { keys: "d4b10", values: "d4b6" };

/** From the paper's scheme to `vecinfer+`, each at the paper's format of three rates: single changes first, then together. */
const STEPS: readonly Pick<AblationRow, "name" | "scheme" | "sinks">[] = [
  { name: "vecinfer", scheme: paper },
  { name: "vecinfer, no sinks", scheme: paper, sinks: 0 },
  { name: "vecinfer, keys Hadamard alone", scheme: keyed(paper, "hadamard") },
  { name: "vecinfer, scales", scheme: changed(paper, { tokenScale: true }) },
  { name: "vecinfer, codebook a head", scheme: changed(paper, { codebooks: "head" }) },
  { name: "vecinfer, importance weights", scheme: { ...paper, importance: true } },
  { name: "vecinfer, fitted keys", scheme: keyed(paper, "fitted") },
  { name: "scales, codebook a head, importance", scheme: scaled },
  { name: "fitted", scheme: fitted },
  { name: "fitted, codebook a head", scheme: fittedHeads },
  { name: "fitted, codebook a head, importance", scheme: plus },
  { name: "the same, scales", scheme: changed(plus, { tokenScale: true }) },
];

/** Layers under a mean rate. */
const layered = (bits: number, scheme: Scheme, choices: readonly Format[] = LAYER_FORMATS) => ({
  ...d4b8,
  scheme: { ...scheme, bits },
  choices,
});

/** All rows. */
export const ABLATION: readonly AblationRow[] = [
  ...([["2", d4b8], ["1.5", d8b12], ["1", d8b8]] as const).flatMap(([bits, formats]) =>
    STEPS.map((step) => ({ ...step, ...formats, name: `${bits} ${step.name}` }))
  ),
  // More of the paper's scheme, and its maths setting.
  { name: "4 vecinfer", keys: "d2b8", values: "d2b8", scheme: paper },
  { name: "3 vecinfer", keys: "d4b12", values: "d4b12", scheme: paper },
  { name: "2 vecinfer, maths split", ...split, scheme: paper },
  { name: "1.25 vecinfer", keys: "d8b12", values: "d8b8", scheme: paper },
  { name: "2 vecinfer, fitted values", ...d4b8, scheme: valued(paper, "fitted") },
  { name: "2 vecinfer, values Hadamard", ...d4b8, scheme: valued(paper, "hadamard") },
  { name: "2 vecinfer, keys raw", ...d4b8, scheme: keyed(paper, "none") },
  // Uneven formats, of keys and values and of layers.
  { name: "2 scales, codebook a head, importance, Hadamard alone", ...d4b8, scheme: keyed(scaled, "hadamard") },
  { name: "2 scales, codebook a head, importance, split", ...split, scheme: scaled },
  { name: "2 fitted, codebook a head, importance, another seed", ...d4b8, scheme: plus, training: { seed: 1 } },
  { name: "2 fitted, codebook a head, importance, d4b10 and d4b6", ...uneven, scheme: plus },
  { name: "1.5 fitted, codebook a head, importance, d4b6", ...d4b6, scheme: plus },
  { name: "4 fitted, codebook a head, importance", keys: "d2b8", values: "d2b8", scheme: plus },
  // Token scales take the rest of the bits.
  { name: "2 layers at 1.85, scales, without fitted", ...layered(1.85, keyed(scaled, "hadamard")) },
  { name: "2 layers at 1.95, no importance", ...layered(1.95, fittedHeads) },
  { name: "2 layers at 1.95", ...layered(1.95, plus) },
  { name: "2 layers at 1.95, d4b6 among the formats", ...layered(1.95, plus, [...LAYER_FORMATS, FORMATS.d4b6]) },
  {
    name: "2 layers at 1.95, formats of 12 bits too",
    ...layered(1.95, plus, [...LAYER_FORMATS, FORMATS.d4b6, FORMATS.d4b12, FORMATS.d8b12]),
  },
  { name: "1.5 layers at 1.45", ...layered(1.45, plus) },
  { name: "3 layers at 2.9", ...layered(2.9, plus) },
  // Coders without kernels. The books of a trellis take 0.12 bits at 64 channels and 32768 tokens: under formats a layer, codes have less.
  ...([["two stages", "residual", 1.95, 1.45], ["trellis", "trellis", 1.83, 1.33]] as const).flatMap((
    [title, coder, two, less],
  ) => [
    { name: `2 fitted, codebook a head, importance, ${title}`, ...d4b8, scheme: plus, coder },
    { name: `1.5 fitted, codebook a head, importance, d4b6, ${title}`, ...d4b6, scheme: plus, coder },
    { name: `1 fitted, codebook a head, importance, ${title}`, ...d8b8, scheme: plus, coder },
    { name: `2 layers at ${two}, ${title}`, ...layered(two, plus), coder },
    { name: `1.5 layers at ${less}, ${title}`, ...layered(less, plus), coder },
  ]),
  // Data-free, at every rate.
  { name: "4 data-free", keys: "d2b8", values: "d2b8", scheme: dataFree },
  { name: "3 data-free", keys: "d4b12", values: "d4b12", scheme: dataFree },
  { name: "2 data-free", ...d4b8, scheme: dataFree },
  { name: "2 data-free, split", ...split, scheme: dataFree },
  { name: "2 data-free, d4b10 and d4b6", ...uneven, scheme: dataFree },
  { name: "1.5 data-free", ...d8b12, scheme: dataFree },
  { name: "1.5 data-free, d4b8 and d8b8", keys: "d4b8", values: "d8b8", scheme: dataFree },
  { name: "1.25 data-free", keys: "d8b12", values: "d8b8", scheme: dataFree },
  { name: "1 data-free", ...d8b8, scheme: dataFree },
  // Calibrated on another kind of text.
  ...["prose", "code"].flatMap((calibration) => [
    { name: `2 vecinfer, calibrated on ${calibration}`, ...d4b8, scheme: paper, calibration },
    { name: `2 layers at 1.95, calibrated on ${calibration}`, ...layered(1.95, plus), calibration },
    { name: `1.5 layers at 1.45, calibrated on ${calibration}`, ...layered(1.45, plus), calibration },
    { name: `1 vecinfer, calibrated on ${calibration}`, ...d8b8, scheme: paper, calibration },
    { name: `1 fitted, calibrated on ${calibration}`, ...d8b8, scheme: plus, calibration },
  ]),
];
