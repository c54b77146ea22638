/**
 * The calibration of a cache: for keys and for values, the transform, the codebooks of each layer, and whether tokens
 * carry a scale. It comes from a file that `scripts/calibrate.ts` made for one model, or, without one, from the
 * data-free scheme: Hadamard, token scale, and a codebook fitted once to N(0,1).
 *
 * @module
 */

import { existsSync } from "node:fs";
import { Safetensors, type TensorData, WeightsError, writeSafetensors } from "../weights/safetensors.ts";
import type { CacheShape } from "./bytes.ts";
import { type Format, formatOf, FORMATS } from "./format.ts";
import { gaussianCodebook } from "./gaussian.ts";
import { growingLayers } from "./ring.ts";
import {
  codebookCounts,
  type Codebooks,
  hasHadamard,
  type KvConfig,
  layerFormat,
  PRESETS,
  type Scheme,
  SCHEMES,
  type Side,
  SIDES,
  type SideScheme,
  type TransformKind,
  transformOf,
} from "./scheme.ts";

/** Codebooks and transform of one side of one layer. */
export interface LayerCalibration {
  /** f32 [1 or kvHeads, 1 or headDim / subDim, 2^bits, subDim], as the scheme's `codebooks` says; empty for bf16. */
  codebook: Float32Array;
  /** [kvHeads, headDim], positive; absent where the transform has no smooth factors. */
  smooth?: Float32Array;
  /** A fitted transform, [kvHeads, headDim, headDim]: x~ = x A of row vectors; absent where smooth factors and Hadamard are it. */
  matrix?: Float32Array;
}

/** The calibration of one side (keys or values). */
export interface SideCalibration extends SideScheme {
  /** The format that the codebooks were trained for. */
  format: Format;
  /** By layer; empty for bf16, and without an entry where a layer has a sliding window, which has no codes. */
  layers: LayerCalibration[];
  /** Where it comes from: a path, "data-free", or "exact" for bf16. */
  origin: string;
}

/** A scheme with its arrays, for one model. */
export interface Calibration extends Scheme {
  /** For the keys, after RoPE. */
  keys: SideCalibration;
  /** For the values. */
  values: SideCalibration;
}

const FORMAT_NAME = "vecinfer-calibration";

/** Writes a calibration file. `notes` (text, passages, seed, ...) are kept as metadata. */
export function writeCalibration(
  path: string,
  calibration: Calibration,
  shape: CacheShape,
  fingerprint: string,
  notes: Record<string, string> = {},
): void {
  // Programs from before there were matrices read version 1 alone, and would leave them out.
  const version = SIDES.some((name) => calibration[name].transform === "fitted") ? "2" : "1";
  const metadata: Record<string, string> = { ...notes, format: FORMAT_NAME, version, fingerprint };
  const coded = growingLayers(shape);
  if (coded.length < shape.layers) metadata.coded_layers = coded.join();
  const tensors: Record<string, TensorData> = {};
  for (const name of SIDES) {
    const side = calibration[name];
    metadata[name] = side.format.name;
    metadata[`${name}.hadamard`] = String(hasHadamard(side.transform));
    metadata[`${name}.token_scale`] = String(side.tokenScale);
    if (side.layerFormats) metadata[`${name}.layers`] = side.layerFormats.map((format) => format.name).join();
    side.layers.forEach((layer, index) => {
      if (!coded.includes(index)) return;
      const format = layerFormat(side, side.format, index), { subDim, bits } = format;
      const { heads, parts } = codebookCounts(side.codebooks, shape, format);
      if (layer.matrix) {
        tensors[`layers.${index}.${name}.matrix`] = {
          dtype: "F16",
          shape: [shape.kvHeads, shape.headDim, shape.headDim],
          data: bytesOf(Float16Array.from(layer.matrix)),
        };
      }
      tensors[`layers.${index}.${name}.codebook`] = {
        dtype: "F16",
        // Files of one codebook a head had no dimension for the parts before there were any, and still have none.
        shape: [heads, ...(parts === 1 ? [] : [parts]), 2 ** bits, subDim],
        data: bytesOf(Float16Array.from(layer.codebook)),
      };
      if (layer.smooth) {
        tensors[`layers.${index}.${name}.smooth`] = {
          dtype: "F32",
          shape: [shape.kvHeads, shape.headDim],
          data: bytesOf(layer.smooth),
        };
      }
    });
  }
  writeSafetensors(path, tensors, metadata);
}

function bytesOf(array: Float16Array | Float32Array): Uint8Array {
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}

/**
 * Reads the sides that `want` names from a calibration file. Throws WeightsError, naming the file, where the file is
 * malformed, was made for another model (its fingerprint differs), another shape, or holds another format.
 */
export function readCalibration(
  path: string,
  fingerprint: string,
  shape: CacheShape,
  want: { keys?: Format; values?: Format },
): Partial<Calibration> {
  using file = Safetensors.open(path);
  const note = file.metadata;
  if (note.format !== FORMAT_NAME || !["1", "2"].includes(note.version)) {
    const found = `format "${note.format ?? "none"}", version "${note.version ?? "none"}"`;
    throw new WeightsError(`${path}: not a calibration file of version 1 or 2 (${found})`);
  }
  if (note.fingerprint !== fingerprint) {
    throw new WeightsError(
      `${path}: made for another model (fingerprint ${note.fingerprint?.slice(0, 12) ?? "missing"}, ` +
        `this model has ${fingerprint.slice(0, 12)}); make one with scripts/calibrate.ts`,
    );
  }
  const coded = growingLayers(shape).join(), all = Array.from({ length: shape.layers }, (_, layer) => layer).join();
  if ((note.coded_layers ?? all) !== coded) {
    throw new WeightsError(
      `${path}: coded_layers: holds layers "${note.coded_layers ?? all}", this model codes "${coded}"; ` +
        "make one with scripts/calibrate.ts",
    );
  }
  const out: Partial<Calibration> = {};
  for (const side of SIDES) {
    const format = want[side];
    if (format) out[side] = readSide(file, side, format, shape);
  }
  return out;
}

function readSide(file: Safetensors, side: Side, format: Format, shape: CacheShape): SideCalibration {
  const { path, metadata: note } = file;
  if (note[side] !== format.name) {
    throw new WeightsError(
      `${path}: holds ${side} as ${note[side] ?? "nothing"}, ${format.name} was asked for; ` +
        "make one with scripts/calibrate.ts",
    );
  }
  const layers: LayerCalibration[] = [];
  const coded = growingLayers(shape),
    layerFormats = readLayerFormats(path, note[`${side}.layers`], shape.layers, coded);
  let codebooks: Codebooks = "layer";
  for (const index of coded) {
    const name = `layers.${index}.${side}`, own = layerFormats?.[index] ?? format;
    if (file.has(`${name}.feedback`) || file.has(`${side}.${own.name}.codebook`)) {
      throw new WeightsError(`${path}: made by an early form of vecinfer+; make one with scripts/calibrate.ts`);
    }
    codebooks = codebooksOf(file, `${name}.codebook`, shape.kvHeads);
    const { heads, parts } = codebookCounts(codebooks, shape, own);
    const dimensions = [heads, ...(codebooks.endsWith("sub-vector") ? [parts] : []), 2 ** own.bits, own.subDim];
    const layer: LayerCalibration = { codebook: read(file, `${name}.codebook`, "F16", dimensions) };
    if (file.has(`${name}.matrix`)) {
      layer.matrix = read(file, `${name}.matrix`, "F16", [shape.kvHeads, shape.headDim, shape.headDim]);
    }
    if (file.has(`${name}.smooth`)) {
      layer.smooth = read(file, `${name}.smooth`, "F32", [shape.kvHeads, shape.headDim]);
      if (!layer.smooth.every((x) => x > 0)) throw new WeightsError(`${path}: ${name}.smooth has a factor <= 0`);
    }
    layers[index] = layer;
  }
  return {
    format,
    transform: readTransform(path, side, layers, note[`${side}.hadamard`] === "true"),
    codebooks,
    tokenScale: note[`${side}.token_scale`] === "true",
    ...(layerFormats && { layerFormats }),
    layers,
    origin: path,
  };
}

/** What has a codebook of its own, from the shape of a layer's: [heads, (sub-vectors,) codewords, channels]. */
function codebooksOf(file: Safetensors, name: string, kvHeads: number): Codebooks {
  const { shape } = file.info(name), [heads] = shape, unit = heads === 1 ? "layer" : "head";
  if (heads !== 1 && heads !== kvHeads) {
    throw new WeightsError(`${file.path}: ${name} has ${heads} heads, 1 or ${kvHeads} are needed`);
  }
  return shape.length === 4 ? `${unit} and sub-vector` : unit;
}

/** The transform that the layers' arrays are of. */
function readTransform(path: string, side: Side, layers: LayerCalibration[], hadamard: boolean): TransformKind {
  if (!layers.some((layer) => layer.matrix)) return transformOf(layers.some((layer) => layer.smooth), hadamard);
  if (hadamard || layers.some((layer) => !layer.matrix || layer.smooth)) {
    throw new WeightsError(`${path}: ${side} need a matrix in every layer, without smooth factors and Hadamard`);
  }
  return "fitted";
}

function readLayerFormats(
  path: string,
  list: string | undefined,
  layers: number,
  coded: readonly number[],
): Format[] | undefined {
  if (list === undefined) return undefined;
  const named = list.split(",").map(formatOf);
  const formats = named.filter((format, layer): format is Format =>
    format !== undefined && (format.bits < 16) === coded.includes(layer)
  );
  if (named.length !== layers || formats.length !== layers) {
    throw new WeightsError(`${path}: formats of layers are "${list}"; ${layers} of ${Object.keys(FORMATS)} are needed`);
  }
  return formats;
}

function read(file: Safetensors, name: string, dtype: "F16" | "F32", shape: number[]): Float32Array {
  const info = file.info(name);
  if (info.dtype !== dtype || info.shape.length !== shape.length || info.shape.some((n, i) => n !== shape[i])) {
    throw new WeightsError(
      `${file.path}: ${name} is ${info.dtype} [${info.shape}], this model needs ${dtype} [${shape}]`,
    );
  }
  const bytes = file.read(name).slice().buffer as ArrayBuffer;
  const values = dtype === "F16" ? Float32Array.from(new Float16Array(bytes)) : new Float32Array(bytes);
  if (!values.every(Number.isFinite)) throw new WeightsError(`${file.path}: ${name} has a value that is not finite`);
  return values;
}

/** The bf16 side: nothing to calibrate. */
export function bf16Side(): SideCalibration {
  return { format: FORMATS.bf16, ...SCHEMES.bf16.keys, layers: [], origin: "exact" };
}

/** The calibration of a bf16 cache. */
export function bf16Calibration(): Calibration {
  return { keys: bf16Side(), values: bf16Side() };
}

/** The data-free side: the Gaussian codebook of this format for all layers. */
export function dataFreeSide(format: Format, layers: number): SideCalibration {
  const codebook = gaussianCodebook(format.name);
  return {
    format,
    ...SCHEMES["data-free"].keys,
    layers: Array.from({ length: layers }, () => ({ codebook })),
    origin: "data-free",
  };
}

/** The names of the files that may hold a side: those of its preset, of the paper's other presets with this format, and of the format. */
function fileNames(config: KvConfig, side: Side): string[] {
  const format = config[side].name, papers = Object.entries(PRESETS).filter(([, { scheme }]) => scheme === "vecinfer");
  // Files of other schemes are for their preset alone.
  const others = Object.hasOwn(PRESETS, config.name) && PRESETS[config.name].scheme !== "vecinfer"
    ? []
    : [...papers.filter(([, preset]) => preset[side] === format).map(([name]) => name), format];
  return [...new Set([config.name, ...others])].map((name) => `${name}.vecinfer.safetensors`);
}

/**
 * Finds the calibration of a model: `path` if given; else, side by side, a file `<preset>.vecinfer.safetensors` in
 * `folders`; else the data-free scheme. `origin` of each side tells which it was.
 */
export function findCalibration(
  config: KvConfig,
  shape: CacheShape,
  fingerprint: string,
  options: { path?: string; folders: string[] },
): Calibration {
  if (options.path === "data-free") options = { ...options, path: undefined, folders: [] };
  const sides = SIDES.map((side) => {
    const format = config[side];
    if (format.bits === 16) return bf16Side();
    if (options.path) return readCalibration(options.path, fingerprint, shape, { [side]: format })[side]!;
    for (const folder of options.folders) {
      for (const name of fileNames(config, side)) {
        const path = `${folder}/${name}`;
        if (existsSync(path)) return readCalibration(path, fingerprint, shape, { [side]: format })[side]!;
      }
    }
    return dataFreeSide(format, shape.layers);
  });
  return { keys: sides[0], values: sides[1] };
}

/** One line that says where a calibration comes from. */
export function describeCalibration(calibration: Calibration): string {
  const name = (side: SideCalibration) => side.origin === "data-free" ? "data-free (no calibration file)" : side.origin;
  const [keys, values] = [name(calibration.keys), name(calibration.values)];
  return keys === values ? keys : `keys ${keys}, values ${values}`;
}
