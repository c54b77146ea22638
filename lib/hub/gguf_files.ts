/**
 * Which files of a repository are one GGUF model: repositories hold many, one for each quantization, some of them split in parts.
 *
 * @module
 */

import { WeightsError } from "../weights/json.ts";

const PART = /-\d{5}-of-\d{5}(?=\.gguf$)/i;

/** Whether a file is a GGUF file. */
export function isGgufFile(path: string): boolean {
  return /\.gguf$/i.test(path);
}

/**
 * The files of a GGUF model, its first part first: by its path, by the path of a part, or by what its name says of its quantization
 * ("Q4_K_M"). Throws WeightsError that lists what there is unless it is one.
 */
export function ggufFiles(repository: string, paths: readonly string[], wanted: string): string[] {
  const models = new Map<string, string[]>();
  for (const path of paths.filter(isGgufFile).sort()) {
    const name = path.replace(PART, "");
    models.set(name, [...models.get(name) ?? [], path]);
  }
  const whole = models.get(wanted.replace(PART, ""));
  if (whole) return whole;
  const words = wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), says = new RegExp(`(^|[-./])${words}[-./]`, "i");
  // A projector of images is a part of a model, not one.
  const found = [...models].filter(([name]) => says.test(name) && !/(^|\/)mmproj/i.test(name));
  if (found.length === 1) return found[0][1];
  const listed = [...found.length > 0 ? found : models].map(([name]) => name).join(", ") || "none";
  throw new WeightsError(
    found.length > 0
      ? `${repository}: ${found.length} GGUF models are named ${wanted}; give one of ${listed}`
      : `${repository}: no GGUF model is named ${wanted}; there are: ${listed}`,
  );
}
