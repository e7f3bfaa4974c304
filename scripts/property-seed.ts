/**
 * Preloaded by `npm run check` and `npm test`: property tests try the same cases every time, so that a run fails for what was
 * changed. `npm run nightly` tries others, by PAGODA_PROPERTY_SEED.
 */
import fc from 'fast-check';

fc.configureGlobal({seed: Number(process.env['PAGODA_PROPERTY_SEED'] ?? 1)});
