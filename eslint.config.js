import js from '@eslint/js'
import tseslint from 'typescript-eslint'

export default tseslint.config(
  { ignores: ['dist/', '.cache/', 'node_modules/', 'src/grpc/generated/'] },
  js.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-floating-promises': ['error', { ignoreVoid: true }],
      '@typescript-eslint/switch-exhaustiveness-check': 'error',
      // A port implementation is often async by contract, with nothing of its own to await.
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_' }]
    }
  },
  {
    files: ['src/**/*.ts', 'native/**/*.ts'],
    rules: {
      // What does not fit on a screen is read in pieces; who needs more says why beside it.
      'max-lines-per-function': ['error', { max: 70 }],
      // As prettier has it for code; it leaves comments alone. Drawings, links and messages may be wider.
      'max-len': [
        'error',
        {
          ...{ code: 120, ignoreUrls: true, ignoreStrings: true, ignoreTemplateLiterals: true },
          ...{ ignoreRegExpLiterals: true, ignorePattern: '[─│┌└▶▲▼]' }
        }
      ]
    }
  },
  {
    files: ['test/**/*.test.ts'],
    rules: {
      // ava starts what is declared in the next moment, and takes nothing after it: a file that then waits fails on a busy machine.
      'no-restricted-syntax': [
        'error',
        ...[
          'Program > :matches(ExpressionStatement, VariableDeclaration):has(:matches(CallExpression[callee.name=/^test/], CallExpression[callee.object.name="test"]))',
          'Program > ForOfStatement:has(CallExpression[callee.name="test"])'
        ].flatMap((declaration) =>
          [
            'VariableDeclaration > VariableDeclarator',
            'ExpressionStatement',
            'ExpressionStatement > AssignmentExpression'
          ].map((place) => ({
            selector: `${declaration} ~ ${place} > AwaitExpression`,
            message: 'What a test file waits for comes before its first test, hook and folder.'
          }))
        )
      ]
    }
  },
  {
    files: ['**/*.js', '**/*.mjs'],
    languageOptions: { globals: { process: 'readonly', console: 'readonly', URL: 'readonly' } }
  }
)
