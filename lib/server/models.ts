/**
 * What clients call a model: each cache of the engine has a name of its own.
 *
 * @module
 */

import type { Engine } from "../engine/engine.ts";
import type { CacheConfig } from "../engine/request.ts";
import { ApiError } from "./error.ts";

/** One of the models on offer. */
export interface ServedModel {
  /** What clients ask for. */
  readonly name: string;
  /** The cache that answers. */
  readonly cache: CacheConfig;
}

/**
 * All models: "base" for the first cache, "base:kv" for the others. Default base: the name of the model's folder. Throws
 * EngineError (unavailable) until the model is loaded.
 */
export function servedModels(engine: Engine, name?: string): ServedModel[] {
  const { caches } = engine.config;
  const base = name ?? caches[0].model.replace(/[/\\]+$/, "").split(/[/\\]/).at(-1)!;
  return caches.map((cache, i) => ({ name: i === 0 ? base : `${base}:${cache.kv}`, cache }));
}

/**
 * The model of a name; the first one also answers to "base:kv", and where no name is given. Throws ApiError (404) where there
 * is none.
 */
export function findModel(models: readonly ServedModel[], name: string | null | undefined): ServedModel {
  if (!name) return models[0];
  const found = models.find((model) => model.name === name || `${models[0].name}:${model.cache.kv}` === name);
  if (found) return found;
  throw new ApiError(
    404,
    "invalid_request_error",
    "model_not_found",
    `The model '${name}' does not exist; there is ${models.map(({ name }) => name).join(", ")}`,
    { param: "model" },
  );
}
