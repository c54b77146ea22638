/**
 * Calibrations and what caches cost in quality: training, evaluation, and comparison with other methods.
 *
 * @module
 */

export { Activations, type CaptureOptions } from "./activations.ts";
export {
  calibrate,
  type CalibrateOptions,
  needsWeights,
  type Recipe,
  recipeOf,
  RECIPES,
  train,
  trainCodebook,
} from "./calibrate.ts";
export { evaluate, type EvaluateOptions, type Quality } from "./quality.ts";
export { allocate, DISTORTION, type Sensitivity, sensitivity, type SensitivityOptions } from "./sensitivity.ts";
export { syntheticCalibration } from "./synthetic.ts";
export { DOCUMENT_SEPARATOR, readText, textWindows } from "./text.ts";
export { attentionErrors } from "../compare/attention_error.ts";
export { type CodebookUse, codebookUse, type KeyOutliers, keyOutliers } from "../compare/codebook_use.ts";
export { type Contender, contender, MethodCalibrator, type MethodOptions } from "../compare/contender.ts";
export { type Drift, drifts, greedy } from "../compare/drift.ts";
export {
  type ExactTokens,
  type Method,
  type MethodInfo,
  methodOf,
  METHODS,
  type ReferenceMethod,
  type TokenGroup,
} from "../compare/method.ts";
export { type ProductMethod, type ProductScheme } from "../compare/product.ts";
export { ReferenceCache } from "../compare/reference.ts";
export { DEPTHS, plant, type Planted, retrieves } from "../compare/retrieval.ts";
