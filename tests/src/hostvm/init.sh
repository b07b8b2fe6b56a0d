#!/bin/busybox sh
# The host VM's first process: mounts the outer root under a writable overlay, enters it and starts the agent there.
# Kernel parameters: minivmm.results=FOLDER (written through), minivmm.modules=FOLDER (the kernel's module tree outside),
# minivmm.shell (a shell on the serial port instead of the agent).
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
fail() { echo "host VM: $*" >&2; poweroff -f; }
while read -r module; do insmod "/modules/$module.ko" || fail "module $module"; done < /modules/order
shell=no
for word in $(cat /proc/cmdline); do
    case $word in
        minivmm.results=*) results=${word#*=} ;;
        minivmm.modules=*) modules=${word#*=} ;;
        minivmm.shell) shell=yes ;;
    esac
done

share=trans=virtio,version=9p2000.L,msize=512000
mkdir /outer /memory
# readahead, not loose: binaries rebuilt outside must be seen here.
mount -t 9p -o "ro,$share,cache=readahead" outer /outer || fail "no outer root"
mount -t tmpfs -o size=90% memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/outer,upperdir=/memory/upper,workdir=/memory/work overlay /newroot || fail "no overlay"
new=/newroot
mkdir -p $new/proc $new/sys $new/dev $new/run $new/tmp
mount --move /proc $new/proc
mount --move /sys $new/sys
mount --move /dev $new/dev
mount -t tmpfs run $new/run
mkdir -p $new/dev/pts $new/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts $new/dev/pts
mount -t tmpfs shm $new/dev/shm
mount -t cgroup2 cgroup2 $new/sys/fs/cgroup
mkdir -p "$new$results" "$new/lib/modules/$(uname -r)"
mount -t 9p -o "rw,$share,cache=none" results "$new$results" || fail "no results share"
mount --bind "$new$modules" "$new/lib/modules/$(uname -r)" || fail "no modules"
cp /bin/busybox /bin/agent $new/run/

cat > $new/run/start <<'END'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root USER=root LANG=C.UTF-8
busybox=/run/busybox
$busybox hostname hostvm
$busybox ip link set lo up
$busybox grep -q svm /proc/cpuinfo && modprobe kvm-amd
$busybox grep -q vmx /proc/cpuinfo && modprobe kvm-intel
modprobe -a tun vhost_net bridge af_packet veth nf_tables nft_ct nft_nat nft_chain_nat nft_masq nft_fib_inet
[ -c /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c 10 200; }
if [ "$1" = yes ]; then
    shell=/bin/bash; [ -x $shell ] || shell=/bin/sh
    cd /root 2>/dev/null
    TERM=${TERM:-xterm} $busybox setsid $busybox sh -c "exec $shell -i <>/dev/ttyS0 >&0 2>&1"
else
    /run/agent agent
fi
$busybox sync
$busybox poweroff -f
END
exec switch_root $new /run/busybox sh /run/start "$shell"
