# Compiled by native/build.mjs, which finds the Node headers and passes the variables.
{
  'variables': {
    'sanitize%': 0,
    'static_stdcxx%': 0,
  },
  'targets': [
    {
      'target_name': 'tsvmm',
      'sources': [
        '<!@(node -p "[\'.\',\'kvm\',\'io\'].flatMap(d=>{try{return fs.readdirSync(d).filter(f=>f.endsWith(\'.cc\')).sort().map(f=>d+\'/\'+f)}catch{return []}}).join(\' \')")',
      ],
      'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")', '.'],
      'defines': ['NAPI_VERSION=9', 'NAPI_CPP_EXCEPTIONS', '_GNU_SOURCE'],
      'cflags!': ['-fno-exceptions'],
      'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++14', '-std=gnu++17', '-std=gnu++20'],
      'cflags_cc': [
        '-std=c++20', '-fexceptions', '-fvisibility=hidden', '-O2', '-g1',
        '-Wall', '-Wextra', '-Werror', '-Wno-missing-field-initializers',
      ],
      'libraries': ['-lpthread', '-lutil'],
      'conditions': [
        ['sanitize==1', {
          'cflags_cc!': ['-O2', '-O3', '-g1'],
          'cflags_cc': ['-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=undefined', '-fno-omit-frame-pointer'],
          'ldflags': ['-fsanitize=address,undefined'],
        }],
        ['static_stdcxx==1', {
          'ldflags': ['-static-libstdc++', '-static-libgcc', '-Wl,--exclude-libs,ALL'],
        }],
      ],
    },
  ],
}
