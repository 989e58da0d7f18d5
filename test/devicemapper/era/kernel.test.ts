import test from 'ava'
import { losesEras } from '../../../src/devicemapper/era/kernel.ts'

test('kernels before 5.12 forget an era’s writes in a crash', (t) => {
  for (const release of ['3.16.0-4-amd64', '4.19.0', '5.4.0-42-generic', '5.11.22', '5.9', 'linux', '']) {
    t.true(losesEras(release), release)
  }
  for (const release of ['5.12.0', '5.12', '5.15.0-91-generic', '6.1.176', '6.12.9+bpo', '7.2.0', '10.0']) {
    t.false(losesEras(release), release)
  }
})
