/** Mixtures of experts (arXiv 1701.06538): the choice, products with the matrices of the chosen, their sum. @module */
import { VI_ROUTE_NORMALIZED, VI_ROUTE_SOFTMAX, VI_ROUTE_TOP_SOFTMAX } from "../ffi/symbols.ts";
import { dtypes, isPacked, type Tensor } from "../tensor.ts";
import { expectInteger, expectRows, expectSize, mismatch, optional, type RowsOptions } from "./check.ts";

/**
 * What the weights of chosen experts are: "softmax" over all logits, the same "normalized" to a sum of 1, or the "top
 * softmax" over the logits of the chosen alone, which is the same number.
 */
export type RouteMethod = "softmax" | "normalized" | "top softmax";

/** Options of {@linkcode route}. */
export interface RouteOptions extends RowsOptions {
  /** Default: "softmax". */
  readonly method?: RouteMethod;
}

/** Options of {@linkcode expertLinear}. */
export interface ExpertLinearOptions extends RowsOptions {
  /** bf16 [expertCount, outFeatures]. */
  readonly bias?: Tensor | null;
}

const methods: Readonly<Record<RouteMethod, number>> = {
  softmax: VI_ROUTE_SOFTMAX,
  normalized: VI_ROUTE_NORMALIZED,
  "top softmax": VI_ROUTE_TOP_SOFTMAX,
};

/**
 * Chooses the experts of each row: those of the largest logits, best first, the lowest index among equals. experts i32
 * and weights f32 [rows, top], logits f32 [rows, expertCount]. Up to 1024 experts, 32 of them a row.
 */
export function route(experts: Tensor, weights: Tensor, logits: Tensor, options: RouteOptions = {}): void {
  const { device, width } = experts, { rows = logits.length, method = "softmax" } = options;
  expectInteger("route", "rows", rows);
  if (!Object.hasOwn(methods, method)) throw mismatch("route", "method", `one of ${Object.keys(methods)}`, method);
  expectRows("route", "experts", experts, device, "i32", rows, width);
  expectRows("route", "weights", weights, device, "f32", rows, width);
  expectRows("route", "logits", logits, device, "f32", rows, logits.width);
  const status = device.native.vi_route(
    device.context,
    experts.pointer,
    weights.pointer,
    logits.pointer,
    methods[method],
    rows,
    logits.width,
    width,
  );
  if (status !== 0) device.check("vi_route", status);
}

/**
 * Products of rows with the matrices of their experts: x weight[expert]^T + bias[expert]. out f32
 * [rows, top, outFeatures]; x f32 [rows, inFeatures], which all experts of a row read, or [rows, top, inFeatures];
 * weight bf16 [expertCount, outFeatures, inFeatures], or packed [expertCount * outFeatures, inFeatures] with
 * outFeatures a multiple of 16; experts i32 [rows, top]. Only the chosen experts' weights are read. Packed weights
 * round x as in {@linkcode linear}.
 */
export function expertLinear(
  out: Tensor,
  x: Tensor,
  weight: Tensor,
  experts: Tensor,
  options: ExpertLinearOptions = {},
): void {
  const { device } = out, { rows = experts.length, bias } = options, top = experts.width;
  const packed = isPacked(weight.dtype);
  if (!packed && weight.shape.length !== 3) {
    throw mismatch(
      "expertLinear",
      "weight",
      "bf16 [experts, outputs, inputs] or packed [experts * outputs, inputs]",
      weight,
    );
  }
  const outFeatures = out.width / top, inFeatures = weight.shape[weight.shape.length - 1];
  const expertCount = weight.size / inFeatures / outFeatures;
  expectInteger("expertLinear", "rows", rows);
  expectRows("expertLinear", "experts", experts, device, "i32", rows, top);
  expectRows("expertLinear", "out", out, device, "f32", rows, top * (packed ? outFeatures : weight.shape[1]));
  if (!Number.isInteger(outFeatures) || !Number.isInteger(expertCount)) {
    throw mismatch("expertLinear", "weight", `whole matrices of ${outFeatures} outputs`, weight);
  }
  expectRows("expertLinear", "x", x, device, "f32", rows, x.width === inFeatures ? inFeatures : top * inFeatures);
  expectRows("expertLinear", "weight", weight, device, packed ? weight.dtype : "bf16", weight.length, weight.width);
  if (bias) expectSize("expertLinear", "bias", bias, device, "bf16", expertCount * outFeatures);
  const status = device.native.vi_expert_linear(
    device.context,
    out.pointer,
    x.pointer,
    weight.pointer,
    optional(bias),
    experts.pointer,
    dtypes[weight.dtype].code,
    rows,
    top,
    expertCount,
    outFeatures,
    inFeatures,
    x.width === inFeatures ? 1 : top,
  );
  if (status !== 0) device.check("vi_expert_linear", status);
}

/** residual[r] += sum_k weights[r, k] x[r, k]. residual f32 [rows, width], x f32 [rows, top, width], weights f32 [rows, top]. */
export function expertSum(residual: Tensor, x: Tensor, weights: Tensor, options: RowsOptions = {}): void {
  const { device, width } = residual, { rows = weights.length } = options, top = weights.width;
  expectInteger("expertSum", "rows", rows);
  expectRows("expertSum", "residual", residual, device, "f32", rows, width);
  expectRows("expertSum", "x", x, device, "f32", rows, top * width);
  expectRows("expertSum", "weights", weights, device, "f32", rows, top);
  const status = device.native.vi_expert_sum(
    device.context,
    residual.pointer,
    x.pointer,
    weights.pointer,
    rows,
    top,
    width,
  );
  if (status !== 0) device.check("vi_expert_sum", status);
}
