/**
 * The calibration of a cache: for keys and for values, the transform, the codebooks of each layer, and whether tokens
 * carry a scale. It comes from a file that `scripts/calibrate.ts` made for one model, or, without one, from the
 * data-free scheme: Hadamard, token scale, and a codebook fitted once to N(0,1).
 *
 * @module
 */

import { existsSync } from "node:fs";
import { Safetensors, type TensorData, WeightsError, writeSafetensors } from "../weights/safetensors.ts";
import {
  type CacheShape,
  type Format,
  FORMATS,
  type KvConfig,
  layerFormat,
  PRESETS,
  type SideScheme,
} from "./format.ts";
import { gaussianCodebook } from "./gaussian.ts";

/** Codebooks and transform of one side of one layer. */
export interface LayerCalibration {
  /** [codebookHeads, codebookParts, 2^bits, subDim]. */
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
  /** Whether a Walsh-Hadamard transform comes before the codes. */
  hadamard: boolean;
  /** One entry a layer; empty for bf16. */
  layers: LayerCalibration[];
  /** Where it comes from: a path, "data-free", or "exact" for bf16. */
  origin: string;
}

/** A calibration of both sides. */
export interface Calibration {
  /** For the keys, after RoPE. */
  keys: SideCalibration;
  /** For the values. */
  values: SideCalibration;
}

const FORMAT_NAME = "vecinfer-calibration";
const SIDES = ["keys", "values"] as const;

/** Writes a calibration file. `notes` (text, windows, seed, ...) are kept as metadata. */
export function writeCalibration(
  path: string,
  calibration: Calibration,
  shape: CacheShape,
  fingerprint: string,
  notes: Record<string, string> = {},
): void {
  // Programs from before there were matrices read version 1 alone, and would leave them out.
  const version = SIDES.some((which) => calibration[which].fitted) ? "2" : "1";
  const metadata: Record<string, string> = { ...notes, format: FORMAT_NAME, version, fingerprint };
  const tensors: Record<string, TensorData> = {};
  for (const which of SIDES) {
    const side = calibration[which];
    metadata[which] = side.format.name;
    metadata[`${which}.hadamard`] = String(side.hadamard);
    metadata[`${which}.token_scale`] = String(side.tokenScale);
    if (side.layerFormats) metadata[`${which}.layers`] = side.layerFormats.map(({ name }) => name).join();
    side.layers.forEach((layer, index) => {
      const format = layerFormat(side, side.format, index), { subDim, bits } = format;
      if (layer.matrix) {
        tensors[`layers.${index}.${which}.matrix`] = {
          dtype: "F16",
          shape: [shape.kvHeads, shape.headDim, shape.headDim],
          data: bytesOf(Float16Array.from(layer.matrix)),
        };
      }
      tensors[`layers.${index}.${which}.codebook`] = {
        dtype: "F16",
        // Files of one codebook a head had no dimension for the parts before there were any, and still have none.
        shape: [side.codebookHeads, ...(side.codebookParts === 1 ? [] : [side.codebookParts]), 2 ** bits, subDim],
        data: bytesOf(Float16Array.from(layer.codebook)),
      };
      if (layer.smooth) {
        tensors[`layers.${index}.${which}.smooth`] = {
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
  const out: Partial<Calibration> = {};
  for (const which of SIDES) {
    const format = want[which];
    if (!format) continue;
    if (note[which] !== format.name) {
      throw new WeightsError(
        `${path}: holds ${which} as ${note[which] ?? "nothing"}, ${format.name} was asked for; ` +
          "make one with scripts/calibrate.ts",
      );
    }
    const layers: LayerCalibration[] = [];
    const layerFormats = readLayerFormats(path, note[`${which}.layers`], shape.layers);
    let codebookHeads = 1, codebookParts = 1;
    for (let index = 0; index < shape.layers; index++) {
      const name = `layers.${index}.${which}`, own = layerFormats?.[index] ?? format;
      if (file.has(`${name}.feedback`) || file.has(`${which}.${own.name}.codebook`)) {
        throw new WeightsError(`${path}: made by an early form of vecinfer+; make one with scripts/calibrate.ts`);
      }
      const shapeThere = file.info(`${name}.codebook`).shape, hasParts = shapeThere.length === 4;
      codebookHeads = shapeThere[0];
      codebookParts = hasParts ? shapeThere[1] : 1;
      if (codebookHeads !== 1 && codebookHeads !== shape.kvHeads) {
        throw new WeightsError(
          `${path}: ${name}.codebook has ${codebookHeads} heads, 1 or ${shape.kvHeads} are needed`,
        );
      }
      const parts = hasParts ? [shape.headDim / own.subDim] : [];
      const codebook = read(file, `${name}.codebook`, "F16", [codebookHeads, ...parts, 2 ** own.bits, own.subDim]);
      const layer: LayerCalibration = { codebook };
      if (file.has(`${name}.matrix`)) {
        layer.matrix = read(file, `${name}.matrix`, "F16", [shape.kvHeads, shape.headDim, shape.headDim]);
      }
      if (file.has(`${name}.smooth`)) {
        layer.smooth = read(file, `${name}.smooth`, "F32", [shape.kvHeads, shape.headDim]);
        if (!layer.smooth.every((x) => x > 0)) throw new WeightsError(`${path}: ${name}.smooth has a factor <= 0`);
      }
      layers.push(layer);
    }
    const fitted = layers.some((layer) => layer.matrix), hadamard = note[`${which}.hadamard`] === "true";
    if (fitted && (hadamard || layers.some((layer) => !layer.matrix || layer.smooth))) {
      throw new WeightsError(`${path}: ${which} need a matrix in every layer, without smooth factors and Hadamard`);
    }
    out[which] = {
      format,
      hadamard,
      tokenScale: note[`${which}.token_scale`] === "true",
      smooth: layers.some((layer) => layer.smooth),
      codebookHeads,
      codebookParts,
      ...(layerFormats && { layerFormats }),
      ...(fitted && { fitted }),
      layers,
      origin: path,
    };
  }
  return out;
}

function readLayerFormats(path: string, list: string | undefined, layers: number): Format[] | undefined {
  if (list === undefined) return undefined;
  const formats = list.split(",").map((name) => FORMATS[name]);
  if (formats.length !== layers || formats.some((format) => !format || format.bits === 16)) {
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
export function exactSide(): SideCalibration {
  return {
    format: FORMATS.bf16,
    hadamard: false,
    tokenScale: false,
    smooth: false,
    codebookHeads: 1,
    codebookParts: 1,
    layers: [],
    origin: "exact",
  };
}

/** The data-free side: the Gaussian codebook of this format for all layers. */
export function dataFreeSide(format: Format, layers: number): SideCalibration {
  const codebook = gaussianCodebook(format.name);
  return {
    format,
    hadamard: true,
    tokenScale: true,
    smooth: false,
    codebookHeads: 1,
    codebookParts: 1,
    layers: Array.from({ length: layers }, () => ({ codebook })),
    origin: "data-free",
  };
}

/** The preset that calibration files of this format and side are named after, or the format itself. */
function fileNames(config: KvConfig, which: "keys" | "values"): string[] {
  const format = config[which].name;
  // Files of the recipe vecinfer+ are for their preset alone.
  if (PRESETS[config.name]?.plus) return [`${config.name}.vecinfer.safetensors`];
  const presets = Object.entries(PRESETS).filter(([, preset]) => preset[which] === format && !preset.plus).map((
    [name],
  ) => name);
  return [...new Set([config.name, ...presets, format])].map((name) => `${name}.vecinfer.safetensors`);
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
  const sides = SIDES.map((which) => {
    const format = config[which];
    if (format.bits === 16) return exactSide();
    if (options.path) return readCalibration(options.path, fingerprint, shape, { [which]: format })[which]!;
    for (const folder of options.folders) {
      for (const name of fileNames(config, which)) {
        const path = `${folder}/${name}`;
        if (existsSync(path)) return readCalibration(path, fingerprint, shape, { [which]: format })[which]!;
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
