/**
 * Schemes: what is done to keys and values before they are coded, and which of them share a codebook. One table has all of them, one
 * the presets, which are names for a scheme at two formats.
 *
 * @module
 */

import { type Format, type FormatName, formatOf, FORMATS } from "./format.ts";

/** The two sides of a cache. */
export type Side = "keys" | "values";

/** Both of them, in the order of files and reports. */
export const SIDES: readonly Side[] = ["keys", "values"];

/**
 * What comes before the codes: division by smooth factors, sqrt(max |k_i|) a channel; the Walsh-Hadamard matrix of a head; both, in
 * this order; or a matrix fitted to each KV head (see `lib/calibration/fit.ts`).
 */
export type TransformKind = "none" | "smooth" | "hadamard" | "smooth hadamard" | "fitted";

/** What has a codebook of its own. Without "head" all KV heads of a layer share theirs; "model" and "sub-vector" serve all layers. */
export type Codebooks = "model" | "sub-vector" | "layer" | "layer and sub-vector" | "head" | "head and sub-vector";

/** How one side is coded, at whatever format. */
export interface SideScheme {
  /** What comes before the codes. */
  readonly transform: TransformKind;
  /** What has a codebook of its own. */
  readonly codebooks: Codebooks;
  /** Whether each vector has an 8-bit scale. */
  readonly tokenScale: boolean;
  /** The formats of the layers, where they are not all the side's own. */
  readonly layerFormats?: readonly Format[];
}

/** How keys and values are coded. */
export interface Scheme {
  /** How keys are, after RoPE. */
  readonly keys: SideScheme;
  /** How values are. */
  readonly values: SideScheme;
  /**
   * Whether centroids are means weighted by what an error does to the attention's output: sum p_t^2 |v_t - o|^2 for keys and sum p_t^2
   * for values over some queries, with probabilities p and output o of attention, in parts of the layer's mean and at least a
   * hundredth of it; times the square of the token scale, where there is one. Default false.
   */
  readonly importance?: boolean;
  /** Mean bits a channel of the codes, which calibration spreads over layers, keys and values by what each is worth. */
  readonly bits?: number;
}

const plain: SideScheme = { transform: "none", codebooks: "layer", tokenScale: false };

/** The same scheme for keys and values. */
function both(change: Partial<SideScheme>, rest: { importance?: boolean } = {}): Scheme {
  const side = { ...plain, ...change };
  return { keys: side, values: side, ...rest };
}

/** The names of {@linkcode SCHEMES}; what follows a colon is a setting. */
export type SchemeName =
  | "bf16"
  | "data-free"
  | "vecinfer"
  | "vecinfer:hadamard"
  | "vecinfer:plain"
  | "vecinfer+"
  | "million"
  | "million:layer"
  | "cq"
  | "cq:plain";

/** All schemes. `lib/compare/product.ts` says where each is published. */
export const SCHEMES: Readonly<Record<SchemeName, Scheme>> = {
  "bf16": both({}),
  "data-free": both({ transform: "hadamard", codebooks: "model", tokenScale: true }),
  "vecinfer": { keys: { ...plain, transform: "smooth hadamard" }, values: plain },
  "vecinfer:hadamard": { keys: { ...plain, transform: "hadamard" }, values: plain },
  "vecinfer:plain": both({}),
  "vecinfer+": both({ transform: "fitted", codebooks: "head" }, { importance: true }),
  "million": both({ codebooks: "sub-vector" }),
  "million:layer": both({ codebooks: "layer and sub-vector" }),
  "cq": both({ codebooks: "head and sub-vector" }, { importance: true }),
  "cq:plain": both({ codebooks: "head and sub-vector" }),
};

/** A preset: a name for a scheme at two formats. */
export interface Preset {
  /** Format of the keys; that without a calibration, where `bits` is given. */
  readonly keys: FormatName;
  /** Format of the values; likewise. */
  readonly values: FormatName;
  /** How both are coded. */
  readonly scheme: SchemeName;
  /** As {@linkcode Scheme.bits}. */
  readonly bits?: number;
}

/**
 * The presets. The number is the bits a channel of the codes; a plus is the scheme `vecinfer+`, whose codes leave room for its
 * matrices where there is any: at a context of 32768 tokens and 64 channels a head they come to 0.03 bits.
 */
export const PRESETS: Readonly<Record<string, Preset>> = {
  "bf16": { keys: "bf16", values: "bf16", scheme: "bf16" },
  "vq4": { keys: "d2b8", values: "d2b8", scheme: "vecinfer" },
  "vq3": { keys: "d4b12", values: "d4b12", scheme: "vecinfer" },
  "vq2": { keys: "d4b8", values: "d4b8", scheme: "vecinfer" },
  "vq1.5": { keys: "d8b12", values: "d8b12", scheme: "vecinfer" },
  "vq1.25": { keys: "d8b12", values: "d8b8", scheme: "vecinfer" },
  "vq1": { keys: "d8b8", values: "d8b8", scheme: "vecinfer" },
  "vq2+": { keys: "d4b8", values: "d4b8", scheme: "vecinfer+", bits: 1.95 },
  "vq1.5+": { keys: "d4b8", values: "d8b8", scheme: "vecinfer+", bits: 1.45 },
  "vq1+": { keys: "d8b8", values: "d8b8", scheme: "vecinfer+" },
};

/** The scheme of a preset; that of VecInfer, the paper, for any other name. */
export function presetScheme(name: string): Scheme {
  const { scheme = "vecinfer", bits } = presetOf(name) ?? {};
  return { ...SCHEMES[scheme], ...(bits !== undefined && { bits }) };
}

function presetOf(name: string): Preset | undefined {
  return Object.hasOwn(PRESETS, name) ? PRESETS[name] : undefined;
}

/** Whether a transform has the Walsh-Hadamard matrix. */
export function hasHadamard(transform: TransformKind): boolean {
  return transform === "hadamard" || transform === "smooth hadamard";
}

/** Whether a transform has smooth factors. */
export function hasSmooth(transform: TransformKind): boolean {
  return transform === "smooth" || transform === "smooth hadamard";
}

/** The transform of smooth factors and the Walsh-Hadamard matrix, or of one or none. */
export function transformOf(smooth: boolean, hadamard: boolean): TransformKind {
  if (smooth) return hadamard ? "smooth hadamard" : "smooth";
  return hadamard ? "hadamard" : "none";
}

/** The format of one side's layer. */
export function layerFormat(scheme: SideScheme, format: Format, layer: number): Format {
  return scheme.layerFormats?.[layer] ?? format;
}

/** Codebooks of one layer's side: 1 or one a KV head, and of a head 1 or one a sub-vector. */
export function codebookCounts(
  codebooks: Codebooks,
  { kvHeads, headDim }: { kvHeads: number; headDim: number },
  { subDim }: Format,
): { heads: number; parts: number } {
  return {
    heads: codebooks.startsWith("head") ? kvHeads : 1,
    parts: codebooks.endsWith("sub-vector") ? headDim / subDim : 1,
  };
}

/** Whether all layers of one format share their codebooks. */
export function sharedByLayers(codebooks: Codebooks): boolean {
  return codebooks === "model" || codebooks === "sub-vector";
}

/** The preset in use where none is asked for. */
export const DEFAULT_KV: string = "vq2+";

/** Channels of a head that the libraries have codes for; those of others are kept in bf16. */
export const CODED_HEAD_DIMS: readonly number[] = [64, 128, 256];

/** The preset in use where none is asked for, of a model with heads of `headDim` channels. */
export function defaultKv(headDim: number): string {
  return CODED_HEAD_DIMS.includes(headDim) ? DEFAULT_KV : "bf16";
}

/** Whether a cache can be of heads of `headDim` channels: it keeps them in bf16, or there are codes for them. */
export function fitsHeadDim({ keys, values }: KvConfig, headDim: number): boolean {
  return CODED_HEAD_DIMS.includes(headDim) || (keys.bits === 16 && values.bits === 16);
}

/** Throws RangeError, which says what to take, where a cache is to have codes for heads that have none. */
export function checkHeadDim(config: KvConfig, headDim: number): void {
  if (fitsHeadDim(config, headDim)) return;
  throw new RangeError(
    `kv: ${config.name} codes heads of ${CODED_HEAD_DIMS.join(", ")} channels; this model's have ${headDim}: take bf16`,
  );
}

/** How many tokens of a sequence are kept in bf16 whatever the scheme. */
export interface ExactTokens {
  /** First positions ("attention sinks"). */
  readonly sinks: number;
  /** Newest positions. */
  readonly window: number;
}

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
export interface KvConfig extends ExactTokens {
  /** The preset's name, or `keys+values` where no preset has these formats. */
  readonly name: string;
  /** How keys are kept. */
  readonly keys: Format;
  /** How values are kept. */
  readonly values: Format;
  /**
   * Rows of the ring that holds the window. The surplus over the window bounds the tokens that one step may add to a
   * sequence (as teacher forcing does) and the tokens that `truncate` can take back without loss.
   */
  readonly recent: number;
}

/** Ring rows beyond the window. */
export const RING_SURPLUS: number = 64;

function sideFormat(name: string, side: Side): Format {
  const format = formatOf(name) ?? formatOf(presetOf(name)?.[side] ?? "");
  if (!format) {
    throw new RangeError(
      `kv: ${side} "${name}" is unknown; presets are ${Object.keys(PRESETS).join(", ")}; formats are ${
        Object.keys(FORMATS).join(", ")
      }`,
    );
  }
  return format;
}

/** Resolves what a user asked for. Throws RangeError that names the unknown preset, format or size. */
export function kvConfig(spec: KvSpec, exact: Partial<ExactTokens> = {}): KvConfig {
  // A plus at the end is the preset's own.
  const apart = typeof spec === "string" && !presetOf(spec) ? /^(.+)\+(.+)$/.exec(spec) : null;
  const wanted = typeof spec !== "string"
    ? spec
    : apart
    ? { keys: apart[1], values: apart[2] }
    : { keys: spec, values: spec };
  const keys = sideFormat(wanted.keys, "keys"), values = sideFormat(wanted.values, "values");
  const own = typeof spec === "string" ? exact : spec;
  const sinks = own.sinks ?? exact.sinks ?? 4, window = own.window ?? exact.window ?? 128;
  for (const [name, value] of [["sinks", sinks], ["window", window]] as const) {
    if (!Number.isInteger(value) || value < 0 || value > 65536) {
      throw new RangeError(`kv: ${name} is ${value}; a whole number from 0 to 65536 is needed`);
    }
  }
  const bf16 = keys.bits === 16 && values.bits === 16;
  return {
    name: presetName(wanted, keys, values) ?? (keys === values ? keys.name : `${keys.name}+${values.name}`),
    keys,
    values,
    sinks: bf16 ? 0 : sinks,
    window: bf16 ? 0 : window,
    recent: bf16 ? 0 : window + RING_SURPLUS,
  };
}

/** The preset that was asked for, or the paper's that has these formats. */
function presetName(wanted: { keys: string; values: string }, keys: Format, values: Format): string | undefined {
  if (wanted.keys === wanted.values && presetOf(wanted.keys)) return wanted.keys;
  const papers = Object.entries(PRESETS).filter(([, { scheme }]) => scheme !== "vecinfer+");
  return papers.find(([, preset]) => preset.keys === keys.name && preset.values === values.name)?.[0];
}
