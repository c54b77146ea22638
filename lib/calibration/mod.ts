/**
 * Calibrations and what caches cost in quality: training, evaluation, and comparison with other methods.
 *
 * @module
 */

export {
  Activations,
  type CaptureOptions,
  LayerActivations,
  type RowTransform,
  SideActivations,
} from "./activations.ts";
export { calibrate, isFitted, LAYER_FORMATS, withLayerFormats } from "./calibrate.ts";
export { trainCodebook, type TrainingOptions } from "./codebook.ts";
export { type AfterStep, evaluate, type EvaluateOptions, type Quality } from "./quality.ts";
export { syntheticCalibration } from "./synthetic.ts";
export { DOCUMENT_SEPARATOR, readText, textPassages } from "./text.ts";
export { calibrationFolder, loadCalibration } from "../engine/load.ts";
export { modelFingerprint } from "../weights/fingerprint.ts";
export { attentionErrors } from "../compare/attention_error.ts";
export { MethodCalibrator, type MethodOptions } from "../compare/calibrator.ts";
export { type CodebookUse, codebookUse, type KeyOutliers, keyOutliers } from "../compare/codebook_use.ts";
export { type Contender, contender } from "../compare/contender.ts";
export { type Drift, drifts, greedy } from "../compare/drift.ts";
export {
  type Method,
  type MethodInfo,
  type ProductMethod,
  type ReferenceMethod,
  type TokenGroup,
} from "../compare/method.ts";
export { ReferenceCache, settle } from "../compare/reference.ts";
export { methodOf, METHODS } from "../compare/registry.ts";
export { DEPTHS, plant, type Planted, retrieves } from "../compare/retrieval.ts";
