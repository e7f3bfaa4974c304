import {defineConfig} from 'oxlint';

/** The architecture as a table: each folder of src/, and the folders it may import (docs/decisions/0002-boundaries.md). */
const layers: Record<string, readonly string[]> = {
  runtime: [],
  postgres: ['runtime'],
  wire: ['postgres', 'runtime'],
  objectstore: ['runtime', 'postgres'],
  redo: ['runtime', 'postgres'],
  proposer: ['runtime', 'postgres', 'wire'],
  safekeeper: ['runtime', 'postgres', 'wire', 'objectstore'],
  pageserver: ['runtime', 'postgres', 'wire', 'objectstore', 'redo'],
  broker: ['runtime', 'wire'],
  compute: ['runtime', 'postgres', 'wire'],
  control: ['runtime', 'postgres', 'wire'],
  proxy: ['runtime', 'wire'],
};
/** These two put the parts together; nobody imports them. */
const assemblies = ['cli', 'sim'];

const folders = Object.keys(layers);
const all = [...folders, ...assemblies];
const ambient = ['Date', 'setTimeout', 'setInterval', 'setImmediate', 'fetch', 'process', 'crypto', 'performance'];

export default defineConfig({
  plugins: ['typescript', 'import', 'unicorn', 'oxc'],
  ignorePatterns: ['node_modules/**', '.cache/**', '.pagoda/**'],
  options: {typeAware: true, reportUnusedDisableDirectives: 'error'},
  categories: {correctness: 'error'},
  rules: {
    'import/no-cycle': 'error',
    'typescript/no-floating-promises': 'error',
    'typescript/no-explicit-any': 'error',
    'import/no-default-export': 'error',
    // Buffers and sockets make these noisy without finding faults here.
    'typescript/no-base-to-string': 'off',
    'typescript/restrict-template-expressions': 'off',
    'unicorn/no-new-array': 'off',
    'unicorn/no-thenable': 'off',
  },
  overrides: [
    {files: ['oxlint.config.ts'], rules: {'import/no-default-export': 'off'}},
    {files: ['**/*.test.ts', 'test/**'], rules: {'typescript/no-floating-promises': 'off'}},
    ...folders.map((folder) => {
      const allowed = layers[folder] ?? [];
      const forbidden = all.filter((f) => f !== folder && !allowed.includes(f)).join('|');
      return {
        files: [`src/${folder}/**/*.ts`],
        excludeFiles: ['**/*.test.ts'],
        rules: {
          'no-restricted-imports': [
            'error',
            {
              patterns: [
                {regex: `^#(${forbidden})/`, message: `${folder}/ may import only: ${allowed.join(', ') || 'nothing'}`},
                {regex: `^(\\.\\./)+(${all.join('|')})/`, message: 'An import across folders starts with #'},
                ...(folder === 'runtime'
                  ? []
                  : [{regex: '^node:', message: 'Only runtime/ touches the outside world'}]),
              ],
            },
          ],
          ...(folder === 'runtime'
            ? {}
            : {
                'no-restricted-globals': ['error', ...ambient],
                'no-restricted-properties': [
                  'error',
                  {object: 'Math', property: 'random', message: 'Take a Random (#runtime/random.ts)'},
                ],
              }),
        },
      };
    }),
  ] as never,
});
