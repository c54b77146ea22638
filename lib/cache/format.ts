/**
 * What a cache keeps of each key and value: formats (`d4b8`: one 8-bit code for 4 channels), their preset names
 * (`vq2`), and the exact bytes that follow. Settings of VecInfer (arXiv 2510.06175), and a few between them.
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

/** The formats that the native libraries hold, by name. */
export const FORMATS: Readonly<Record<string, Format>> = Object.fromEntries(
  ([["bf16", 1, 16], ["d2b8", 2, 8], ["d4b12", 4, 12], ["d4b10", 4, 10], ["d4b8", 4, 8], ["d4b6", 4, 6], [
    "d8b12",
    8,
    12,
  ], ["d8b8", 8, 8]] as const).map(([name, subDim, bits]) => [name, { name, subDim, bits }]),
);

/** A preset: formats of keys and values, and for those of the recipe `vecinfer+` what its calibration aims at. */
export interface Preset {
  /** Format of the keys; that without a calibration, where `layerBits` is given. */
  readonly keys: string;
  /** Format of the values; likewise. */
  readonly values: string;
  /** Whether its calibration is made by the recipe `vecinfer+`. */
  readonly plus?: boolean;
  /** Mean bits a channel of the codes, spread over layers, keys and values by what each is worth. */
  readonly layerBits?: number;
}

/**
 * The preset names and the formats of their keys and values. The number is the bits a channel of the codes; a plus is the recipe
 * `vecinfer+`, whose codes leave room for its matrices where there is any: at a context of 32768 tokens and 64 channels a head they come to
 * 0.03 bits.
 */
export const PRESETS: Readonly<Record<string, Preset>> = {
  "bf16": { keys: "bf16", values: "bf16" },
  "vq4": { keys: "d2b8", values: "d2b8" },
  "vq3": { keys: "d4b12", values: "d4b12" },
  "vq2": { keys: "d4b8", values: "d4b8" },
  "vq1.5": { keys: "d8b12", values: "d8b12" },
  "vq1.25": { keys: "d8b12", values: "d8b8" },
  "vq1": { keys: "d8b8", values: "d8b8" },
  "vq2+": { keys: "d4b8", values: "d4b8", plus: true, layerBits: 1.95 },
  "vq1.5+": { keys: "d4b8", values: "d8b8", plus: true, layerBits: 1.45 },
  "vq1+": { keys: "d8b8", values: "d8b8", plus: true },
};

/** The preset in use where none is asked for. */
export const DEFAULT_KV: string = "vq2+";

/**
 * What a user asks for: the name of a preset or format, or two of them for keys and values apart, `d4b10+d8b12` in one or by
 * name with the exact part.
 */
export type KvSpec = string | {
  /** Preset or format name for the keys. */
  keys: string;
  /** Preset or format name for the values. */
  values: string;
  /** First positions kept in bf16 as well ("attention sinks"). Default 4; always 0 for bf16. */
  sinks?: number;
  /** Newest positions read in bf16 rather than from their codes. Default 128; always 0 for bf16. */
  window?: number;
};

/** A resolved {@linkcode KvSpec}. */
export interface KvConfig {
  /** The preset's name, or `keys+values` where no preset has these formats. */
  readonly name: string;
  /** How keys are kept. */
  readonly keys: Format;
  /** How values are kept. */
  readonly values: Format;
  /** First positions kept exactly. */
  readonly sinks: number;
  /** Newest positions kept exactly. */
  readonly window: number;
  /**
   * Rows of the ring that holds the window. The surplus over the window bounds the tokens that one step may add to a
   * sequence (a chunk of teacher forcing) and the tokens that `truncate` can take back without loss.
   */
  readonly recent: number;
}

/** Ring rows beyond the window. */
export const RING_SURPLUS: number = 64;

/** Tokens in a page, as VI_PAGE_TOKENS in the ABI. */
export const PAGE_TOKENS: number = 64;

function side(name: string, which: "keys" | "values"): Format {
  const format = FORMATS[name] ?? FORMATS[PRESETS[name]?.[which]];
  if (!format) {
    throw new RangeError(
      `kv: ${which} "${name}" is unknown; presets are ${Object.keys(PRESETS).join(", ")}; formats are ${
        Object.keys(FORMATS).join(", ")
      }`,
    );
  }
  return format;
}

/** Resolves what a user asked for. Throws RangeError that names the unknown preset, format or size. */
export function kvConfig(spec: KvSpec, exact: { sinks?: number; window?: number } = {}): KvConfig {
  // A plus at the end is the preset's own.
  const apart = typeof spec === "string" && !(spec in PRESETS) ? /^(.+)\+(.+)$/.exec(spec) : null;
  const wanted = typeof spec !== "string"
    ? spec
    : apart
    ? { keys: apart[1], values: apart[2] }
    : { keys: spec, values: spec };
  const keys = side(wanted.keys, "keys"), values = side(wanted.values, "values");
  const plain = keys.bits === 16 && values.bits === 16;
  const { sinks = 4, window = 128 } = { ...exact, ...(typeof spec === "string" ? {} : definedOf(spec)) };
  for (const [name, value] of [["sinks", sinks], ["window", window]] as const) {
    if (!Number.isInteger(value) || value < 0 || value > 65536) {
      throw new RangeError(`kv: ${name} is ${value}; a whole number from 0 to 65536 is needed`);
    }
  }
  const preset = wanted.keys === wanted.values && wanted.keys in PRESETS
    ? wanted.keys
    : Object.entries(PRESETS).find(([, p]) => p.keys === keys.name && p.values === values.name && !p.plus)?.[0];
  return {
    name: preset ?? (keys === values ? keys.name : `${keys.name}+${values.name}`),
    keys,
    values,
    sinks: plain ? 0 : sinks,
    window: plain ? 0 : window,
    recent: plain ? 0 : window + RING_SURPLUS,
  };
}

function definedOf(spec: { sinks?: number; window?: number }): { sinks?: number; window?: number } {
  const out: { sinks?: number; window?: number } = {};
  if (spec.sinks !== undefined) out.sinks = spec.sinks;
  if (spec.window !== undefined) out.window = spec.window;
  return out;
}

/** The sizes of a model that its cache depends on. */
export interface CacheShape {
  /** Layers, each with a cache of its own. */
  readonly layers: number;
  /** KV heads a layer. */
  readonly kvHeads: number;
  /** Channels a head. */
  readonly headDim: number;
}

/** Bytes that a cache holds, by what they are for. */
export interface CacheBytes {
  /** Codes, or bf16 rows, in pages (whole pages). */
  pages: number;
  /** Token scales in pages. */
  scales: number;
  /** The ring of the newest tokens. */
  window: number;
  /** The first tokens. */
  sinks: number;
  /** Codebooks, smooth factors and fitted transforms. */
  codebooks: number;
  /** All of them. */
  total: number;
}

/** Schemes of one side: what the calibration decides beyond the format. */
export interface SideScheme {
  /** One codebook a layer (1) or one a KV head. */
  codebookHeads: number;
  /** One codebook for all sub-vectors of a head (1, what the kernels are tuned for) or one for each (headDim / subDim). */
  codebookParts: number;
  /** Whether each vector has an 8-bit scale. */
  tokenScale: boolean;
  /** Whether there are smooth factors. */
  smooth: boolean;
  /** Whether the transform is a fitted matrix a layer and KV head, in place of smooth factors and Hadamard. */
  fitted?: boolean;
  /** The formats of the layers, where they are not all the side's own. */
  layerFormats?: readonly Format[];
}

/** The format of one side's layer. */
export function layerFormat(scheme: SideScheme, format: Format, layer: number): Format {
  return scheme.layerFormats?.[layer] ?? format;
}

/** Bytes of one side's fitted transform in one layer as it is kept in a file, f16; a device holds it and its two inverses as f32. */
export function matrixBytes({ kvHeads, headDim }: CacheShape): number {
  return kvHeads * headDim * headDim * 2;
}

/** The bytes of one side's token in one layer's pages: codes, then scales. */
export function tokenBytes(shape: CacheShape, format: Format, tokenScale: boolean): { codes: number; scale: number } {
  return {
    codes: shape.kvHeads * (shape.headDim / format.subDim) * format.bits / 8,
    scale: tokenScale && format.bits < 16 ? shape.kvHeads : 0,
  };
}

/**
 * The exact bytes of a cache for `sequences` sequences of `tokens` tokens each: what `KvCache.bytes()` counts for
 * these pages, and what `scripts/plan.ts` plans with. Codebooks are counted as f16, as in the calibration file.
 */
export function cacheBytes(
  shape: CacheShape,
  config: KvConfig,
  scheme: { keys: SideScheme; values: SideScheme },
  tokens: number,
  sequences: number = 1,
): CacheBytes {
  const bytes: CacheBytes = { pages: 0, scales: 0, window: 0, sinks: 0, codebooks: 0, total: 0 };
  const pageTokens = Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS * sequences;
  for (const which of ["keys", "values"] as const) {
    const side = scheme[which], { codebookHeads, codebookParts } = side;
    for (let layer = 0; layer < shape.layers; layer++) {
      const format = layerFormat(side, config[which], layer), token = tokenBytes(shape, format, side.tokenScale);
      bytes.pages += pageTokens * token.codes;
      bytes.scales += pageTokens * token.scale;
      if (format.bits < 16) bytes.codebooks += codebookHeads * codebookParts * 2 ** format.bits * format.subDim * 2;
    }
    const row = shape.layers * shape.kvHeads * shape.headDim * 2 * sequences;
    bytes.window += row * config.recent;
    bytes.sinks += row * config.sinks;
    if (side.fitted) bytes.codebooks += shape.layers * matrixBytes(shape);
    if (side.smooth) bytes.codebooks += shape.layers * shape.kvHeads * shape.headDim * 4;
  }
  bytes.total = bytes.pages + bytes.scales + bytes.window + bytes.sinks + bytes.codebooks;
  return bytes;
}

/** Bits a channel that `bytes` come to over `tokens` tokens of keys and values. */
export function effectiveBits(shape: CacheShape, bytes: number, tokens: number): number {
  return bytes * 8 / (tokens * shape.layers * shape.kvHeads * shape.headDim * 2);
}
