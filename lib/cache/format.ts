/**
 * The formats that the native libraries hold: how many channels share one code, and of how many bits (`d4b8`: one 8-bit code for 4
 * channels). Tables with an entry a format are typed by {@linkcode CodedFormatName}, so that a forgotten one is an error of types.
 *
 * @module
 */

/** How one side (keys or values) of a cache is kept. */
export interface Format {
  /** The format's own name: `bf16` or `dXbY`. */
  readonly name: string;
  /** Channels that share one code; 1 for bf16. */
  readonly subDim: number;
  /** Bits of one code; 16 for bf16. */
  readonly bits: number;
}

/** The names of the formats that have codes. */
export type CodedFormatName = "d2b8" | "d4b12" | "d4b10" | "d4b8" | "d4b6" | "d8b12" | "d8b8";

/** The names of the formats. */
export type FormatName = "bf16" | CodedFormatName;

/** The formats, by name. */
export const FORMATS: Readonly<Record<FormatName, Format>> = {
  bf16: { name: "bf16", subDim: 1, bits: 16 },
  d2b8: { name: "d2b8", subDim: 2, bits: 8 },
  d4b12: { name: "d4b12", subDim: 4, bits: 12 },
  d4b10: { name: "d4b10", subDim: 4, bits: 10 },
  d4b8: { name: "d4b8", subDim: 4, bits: 8 },
  d4b6: { name: "d4b6", subDim: 4, bits: 6 },
  d8b12: { name: "d8b12", subDim: 8, bits: 12 },
  d8b8: { name: "d8b8", subDim: 8, bits: 8 },
};

/** The format of a name, or undefined where there is none. */
export function formatOf(name: string): Format | undefined {
  return Object.hasOwn(FORMATS, name) ? FORMATS[name as FormatName] : undefined;
}
