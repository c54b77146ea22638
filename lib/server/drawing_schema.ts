/**
 * Fields of drawing and of length that dialects share, with the values that other servers give a sense of their own.
 *
 * @module
 */

import { z } from "@hono/zod-openapi";

/** Fields of drawing. */
export const drawing = {
  top_k: z.number().int().min(-1).max(2 ** 24).nullish().openapi({ description: "0 and -1 keep all." }),
  seed: z.number().min(-(2 ** 63)).max(2 ** 64).refine(Number.isInteger, "expected a whole number").nullish().openapi({
    description: "-1 draws one.",
  }),
};

/** Tokens at most, at least `least`; -1 is no limit, as llama.cpp has it. */
export function tokenLimit(least: number): z.ZodNumber {
  return z.number().int().min(-1).max(2 ** 31).refine(
    (tokens) => tokens === -1 || tokens >= least,
    `expected ${least} or more, or -1 for no limit`,
  );
}
