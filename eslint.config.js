import js from '@eslint/js'
import tseslint from 'typescript-eslint'

export default tseslint.config(
  { ignores: ['**/dist/', 'node_modules/', '.tap/'] },
  js.configs.recommended,
  ...tseslint.configs.strict,
  {
    rules: {
      'no-restricted-imports': [
        'error',
        { paths: [{ name: 'koffi', message: 'Only src/sys talks to the kernel.' }] },
      ],
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      '@typescript-eslint/no-non-null-assertion': 'off',
    },
  },
  { files: ['src/sys/src/**'], rules: { 'no-restricted-imports': 'off' } },
  {
    // What `using` or `finally` ends must outlive the promise that is returned.
    files: ['{src,test,bench}/**/*.ts'],
    languageOptions: {
      parserOptions: {
        project: ['tsconfig.json', 'src/sys/tsconfig.json', 'src/vhost-user-ts/tsconfig.json'],
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: { '@typescript-eslint/return-await': ['error', 'error-handling-correctness-only'] },
  },
)
